"""What benchmarks/proofs.py judges: networks and graphs of seeds, and faults to plant in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploykit.data.preprocess import Preprocess
from deploykit.graph.editing import is_op
from deploykit.networks import reparam
from deploykit.networks.loading import Network
from deploykit.recipes import metadata
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Rng: TypeAlias = np.random.Generator

SIDE, WIDTH, CLASSES = 32, 12, 10
SKEWS = (0.3, 1.0, 2.0)
"""Deviation of the batch norms' statistics, of their logarithm where they are variances."""
TAILS = ((0.0, 1.0), (0.01, 1e-5), (4000.0, 0.5))
"""Outputs are a + b * tanh(x): plain, hardly varying, logits of 4000 that vary by 1."""


# --- networks in torch -----------------------------------------------------------------------


class Net(nn.Module):
    """Branches and batch norms, a pool, a linear layer, and a tail."""

    def __init__(self, tail: tuple[float, float]) -> None:
        """Make the layers."""
        super().__init__()
        self.tail = tail
        self.body = nn.Sequential(
            reparam.ConvNorm((3, WIDTH), stride=2, activation=nn.ReLU()),
            reparam.RepVGGBlock((WIDTH, WIDTH)),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
            nn.BatchNorm2d(WIDTH),
            nn.SiLU(),
            reparam.RepVGGBlock((WIDTH, WIDTH), groups=2),
            nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2),
            nn.BatchNorm2d(WIDTH),
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float[batch, CLASSES]."""
        offset, spread = self.tail
        return offset + spread * torch.tanh(self.head(self.body(x).mean((2, 3))))


class Mixed(nn.Module):
    """What graphs get wrong: pools, a resize, activations with limits, a softmax, and a tail."""

    def __init__(self, tail: tuple[float, float]) -> None:
        """Make the layers."""
        super().__init__()
        self.tail = tail
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.Hardswish(),
            nn.AvgPool2d(3, 1, 1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            reparam.ConvNorm((WIDTH, WIDTH), activation=nn.LeakyReLU(0.1)),
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float[batch, CLASSES]."""
        x = self.body(self.norm(self.stem(x)))
        x = x + torch.softmax(0.01 * x, 1)
        offset, spread = self.tail
        return offset + spread * torch.tanh(self.head(x.mean((2, 3))))


def network(
    seed: int,
    deploy: Callable[[nn.Module], nn.Module] = reparam.fold,
    kind: type[Net | Mixed] = Net,
) -> Network:
    """Return a network of a seed, in the shape of a trained one; deploy: how it is folded."""
    torch.manual_seed(seed)
    module = kind(TAILS[seed % len(TAILS)]).eval()
    skewed(module, SKEWS[seed // len(TAILS) % len(SKEWS)])
    recipe = RECIPES.load("repvgg")
    return Network(module, replace(recipe, deploy=deploy), card(seed))


def skewed(module: nn.Module, skew: float) -> None:
    """Give every batch norm statistics far from trained ones."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            with torch.no_grad():
                layer.weight.normal_(1, skew)
                layer.bias.normal_(0, skew)
                layer.running_mean.normal_(0, skew)  # type: ignore[union-attr]  # it is tracked
                layer.running_var.copy_(  # type: ignore[union-attr]
                    torch.exp(skew * torch.randn(layer.num_features))
                )


def card(seed: int) -> ModelCard:
    """Return a card: pixels of 0 to 1, or of 0 to 255."""
    size = (SIDE, SIDE)
    preprocess = Preprocess(size) if seed % 2 else Preprocess(size, scale=1.0, mean=(128.0,) * 3)
    names = tuple(f"class{i}" for i in range(CLASSES))
    return ModelCard("repvgg", "a0", "classification", preprocess, names, "0" * 64)


def _norm(module: nn.Module, rng: Rng) -> nn.BatchNorm2d:
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    return norms[rng.integers(len(norms))]


def _conv(module: nn.Module, rng: Rng) -> nn.Conv2d:
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    return convs[rng.integers(len(convs))]


def all_eps(module: nn.Module, _: Rng) -> None:
    """1e-3 in place of 1e-5, or the other way round, in every batch norm."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = _other_eps(layer)


def one_eps(module: nn.Module, rng: Rng) -> None:
    """The same in one of them."""
    layer = _norm(module, rng)
    layer.eps = _other_eps(layer)


def _other_eps(layer: nn.BatchNorm2d) -> float:
    return 1e-3 if layer.eps < 1e-4 else 1e-5


def norm_bias(module: nn.Module, rng: Rng) -> None:
    """One channel's bias of a batch norm dropped."""
    _norm(module, rng).bias.data[rng.integers(WIDTH)] = 0


def norm_mean(module: nn.Module, rng: Rng) -> None:
    """One channel's mean of a batch norm dropped."""
    _norm(module, rng).running_mean[rng.integers(WIDTH)] = 0  # type: ignore[index]  # tracked


def norm_channels(module: nn.Module, rng: Rng) -> None:
    """The scales of two channels exchanged."""
    weight, (i, j) = _norm(module, rng).weight.data, rng.choice(WIDTH, 2, replace=False)
    weight[[int(i), int(j)]] = weight[[int(j), int(i)]]


def branch(module: nn.Module, rng: Rng) -> None:
    """The identity of a RepVGG block left out."""
    blocks = [m for m in module.modules() if isinstance(m, reparam.RepVGGBlock)]
    blocks[rng.integers(len(blocks))].rbr_identity = None


def folded_bias(module: nn.Module, rng: Rng) -> None:
    """One channel's bias of a folded convolution dropped."""
    bias = _conv(module, rng).bias
    assert bias is not None
    bias.data[rng.integers(len(bias))] = 0


def folded_channels(module: nn.Module, rng: Rng) -> None:
    """Two output channels of a folded convolution exchanged."""
    weight, (i, j) = _conv(module, rng).weight.data, rng.choice(WIDTH, 2, replace=False)
    weight[[int(i), int(j)]] = weight[[int(j), int(i)]]


def folded_padding(module: nn.Module, rng: Rng) -> None:
    """A folded convolution that repeats the border where it should see zeros."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d) and m.padding == (1, 1)]
    conv = convs[rng.integers(len(convs))]
    conv.padding_mode = "replicate"
    conv._reversed_padding_repeated_twice = [1] * 4  # noqa: SLF001 - torch's name for it


BEFORE = (all_eps, one_eps, norm_bias, norm_mean, norm_channels, branch)
"""Faults planted in a network before it is folded."""
AFTER = (folded_bias, folded_channels, folded_padding)
"""Faults planted in the folded one."""


# --- graphs in ONNX --------------------------------------------------------------------------


class _Writer:
    """Writes a graph, node after node."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.skew = SKEWS[seed // len(TAILS) % len(SKEWS)]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - ONNX's own
        name = f"n{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def weight(self, array: object) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.weight((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, width: int, kernel: int = 3, groups: int = 1) -> str:
        fan = width // groups * kernel**2
        return self.op(
            "Conv",
            x,
            self.normal(WIDTH, width // groups, kernel, kernel, scale=(2 / fan) ** 0.5),
            self.normal(WIDTH, scale=0.3),
            kernel_shape=[kernel] * 2,
            pads=[kernel // 2] * 4,
            group=groups,
        )

    def norm(self, x: str) -> str:
        rows = self.rng.standard_normal((4, WIDTH)) * self.skew
        rows[0] += 1
        rows[3] = np.exp(rows[3])
        return self.op("BatchNormalization", x, *(self.weight(r.astype(np.float32)) for r in rows))

    def block(self, x: str) -> str:
        """Return one of the forms that rewrites know."""
        kind = self.rng.integers(6)
        if kind == 0:
            return self.op("Relu", self.norm(self.conv(x, WIDTH)))
        if kind == 1:
            return self.op(
                "Add", x, self.op("Sigmoid", self.norm(self.conv(x, WIDTH, groups=WIDTH)))
            )
        if kind == 2:
            scaled = self.op("Mul", self.conv(x, WIDTH, 1), self.normal(WIDTH, 1, 1))
            return self.op("Relu", self.op("Sub", scaled, self.normal(WIDTH, 1, 1)))
        if kind == 3:
            pooled = self.op(
                "AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
            )
            return self.op("Relu", self.norm(self.conv(pooled, WIDTH, groups=2)))
        if kind == 4:
            up = self.op(
                "ConvTranspose",
                x,
                self.normal(WIDTH, WIDTH, 2, 2, scale=0.3),
                kernel_shape=[2, 2],
                strides=[2, 2],
            )
            return self.op("MaxPool", self.norm(up), kernel_shape=[2, 2], strides=[2, 2])
        return self.op("Identity", self.op("Tanh", self.norm(self.conv(x, WIDTH))))

    def tail(self, x: str, tail: tuple[float, float]) -> str:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        rows = self.op("Gemm", pooled, self.normal(WIDTH, CLASSES), self.normal(CLASSES))
        rows = self.op("Mul", rows, self.normal(CLASSES))
        offset, spread = (self.weight(np.float32(value)) for value in tail)
        return self.op("Add", offset, self.op("Mul", self.op("Tanh", rows), spread))


def graph(seed: int, *, squares: bool = False) -> ir.Model:
    """Return a graph of a seed with its card; squares: one that leaves FP16's range."""
    write = _Writer(seed)
    x = write.op("Relu", write.norm(write.conv("images", 3)))
    for _ in range(4):
        x = write.block(x)
    if squares:
        large = write.op("Mul", x, write.weight(np.float32(3000)))
        x = write.op("Sqrt", write.op("GlobalAveragePool", write.op("Mul", large, large)))
    last = write.tail(x, TAILS[seed % len(TAILS)])
    write.nodes[-1].output[0] = "logits"
    assert last != "logits"
    made = helper.make_graph(
        write.nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        write.weights,
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    model: ir.Model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    metadata.write(model.metadata_props, card(seed))
    return model


def _nodes(model: ir.Model, *kinds: str) -> list[ir.Node]:
    return [node for node in model.graph if is_op(node, *kinds)]


def _some(model: ir.Model, rng: Rng, *kinds: str) -> ir.Node:
    found = _nodes(model, *kinds)
    return found[rng.integers(len(found))]


def _change(value: ir.Value | None, change: Callable[[NDArray[Any]], None]) -> None:
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    change(array)
    value.const_value = ir.tensor(array, name=value.name)


def graph_bias(model: ir.Model, rng: Rng) -> None:
    """One channel's bias of a convolution dropped."""
    nodes = [n for n in _nodes(model, "Conv") if len(n.inputs) > 2]

    def drop(array: NDArray[Any]) -> None:
        array[rng.integers(len(array))] = 0

    _change(nodes[rng.integers(len(nodes))].inputs[2], drop)


def graph_layer_bias(model: ir.Model, rng: Rng) -> None:
    """All of a layer's bias dropped."""
    nodes = [n for n in _nodes(model, "Conv", "Gemm") if len(n.inputs) > 2]
    nodes[rng.integers(len(nodes))].replace_input_with(2, None)


def graph_channels(model: ir.Model, rng: Rng) -> None:
    """Two channels of a bias exchanged."""
    nodes = [n for n in _nodes(model, "Conv") if len(n.inputs) > 2]

    def swap(array: NDArray[Any]) -> None:
        i, j = rng.choice(len(array), 2, replace=False)
        array[[i, j]] = array[[j, i]]

    _change(nodes[rng.integers(len(nodes))].inputs[2], swap)


def graph_padding(model: ir.Model, rng: Rng) -> None:
    """A padding moved to one side."""
    padded = [
        n
        for n in _nodes(model, "Conv", "AveragePool")
        if "pads" in n.attributes and any(n.attributes["pads"].as_ints())
    ]
    node = padded[rng.integers(len(padded))]
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 2, 2])


def graph_input(model: ir.Model, rng: Rng) -> None:
    """A layer left out: its reader reads what it read."""
    node = _some(model, rng, "Relu", "Tanh", "Sigmoid")
    source = node.inputs[0]
    assert source is not None
    node.outputs[0].replace_all_uses_with(source)


def graph_activation(model: ir.Model, rng: Rng) -> None:
    """Another activation."""
    node = _some(model, rng, "Relu", "Tanh", "Sigmoid")
    node.op_type = "Softplus" if node.op_type == "Relu" else "Softsign"


def graph_limit(model: ir.Model, rng: Rng) -> None:
    """A ReLU that ends at 6."""
    node = _some(model, rng, "Relu")
    output, top = node.outputs[0], ir.tensor(np.float32(6), name="six")
    six = ir.Value(name="six", type=ir.TensorType(top.dtype), const_value=top)
    model.graph.register_initializer(six)
    limited = ir.Node("", "Min", [output, six], num_outputs=1, name="limited")
    limited.outputs[0].type, limited.outputs[0].shape = output.type, output.shape
    output.replace_all_uses_with(limited.outputs[0])
    limited.replace_input_with(0, output)
    model.graph.insert_after(node, limited)


def graph_resize(model: ir.Model, rng: Rng) -> None:
    """A resize that is shifted by half a pixel, or stretched to the corners."""
    node = _some(model, rng, "Resize")
    mode = ("asymmetric", "align_corners")[rng.integers(2)]
    key = "coordinate_transformation_mode"
    node.attributes[key] = ir.AttrString(key, mode)


def graph_ceil(model: ir.Model, rng: Rng) -> None:
    """A pool that has another window at the end."""
    _some(model, rng, "MaxPool").attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 1)
    for node in model.graph:
        if not node.outputs[0].is_graph_output():
            node.outputs[0].shape = None  # they are others now


def graph_border(model: ir.Model, rng: Rng) -> None:
    """A mean that leaves out the zeros of the border."""
    node = _some(model, rng, "AveragePool")
    node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)


def graph_axis(model: ir.Model, rng: Rng) -> None:
    """A softmax along another axis."""
    _some(model, rng, "Softmax").attributes["axis"] = ir.AttrInt64("axis", 2)


def graph_slope(model: ir.Model, rng: Rng) -> None:
    """A leaky ReLU whose slope is right in two digits."""
    _some(model, rng, "LeakyRelu").attributes["alpha"] = ir.AttrFloat32("alpha", 0.101)


EXPORT_FAULTS = (graph_limit, graph_resize, graph_ceil, graph_border, graph_axis, graph_slope)
"""Faults planted in an exported graph."""


def graph_anchors(model: ir.Model, rng: Rng) -> None:
    """Anchors, or the centres of cells, moved by a hundredth of a pixel."""
    kept = model.graph.initializers.values()
    tables = [v for v in kept if v.const_value is not None and _is_table(v.const_value)]

    def move(array: NDArray[Any]) -> None:
        array += np.float32(0.01)

    _change(tables[rng.integers(len(tables))], move)


def _is_table(tensor: ir.TensorProtocol) -> bool:
    """Return whether these are places: many rows of two or four numbers."""
    shape = tensor.shape.numpy()
    rows = len(shape) > 1 and shape[-1] in (2, 4) and np.prod(shape[:-1]) > 50
    return bool(rows) and tensor.dtype is ir.DataType.FLOAT


GRAPH_FAULTS = (
    graph_bias,
    graph_layer_bias,
    graph_channels,
    graph_padding,
    graph_input,
    graph_activation,
)
"""Faults planted in a graph after it was rewritten."""


def graph_eps(model: ir.Model, rng: Rng) -> None:
    """1e-3 in place of 1e-5 in a batch norm that is about to be folded."""
    node = _some(model, rng, "BatchNormalization")
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)


def graph_mean(model: ir.Model, rng: Rng) -> None:
    """One channel's mean forgotten by a fold."""

    def drop(array: NDArray[Any]) -> None:
        array[rng.integers(len(array))] = 0

    _change(_some(model, rng, "BatchNormalization").inputs[3], drop)


FOLD_FAULTS: Sequence[Callable[[ir.Model, Rng], None]] = (graph_eps, graph_mean)
"""Faults planted in a graph before it is rewritten."""
