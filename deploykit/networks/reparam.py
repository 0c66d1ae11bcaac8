"""Re-parameterisation: branches and batch norms folded into the convolutions before them."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.files import extensions

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from deploykit.recipes.recipe import Recipe

Conv = TypeVar("Conv", bound=nn.Conv2d | nn.ConvTranspose2d)
_COUNTER = "num_batches_tracked"


@runtime_checkable
class Foldable(Protocol):
    """A module that equals a simpler one once its batch norm statistics stand still."""

    def folded(self) -> nn.Module:
        """Return the simpler module, which may fold further; this one stays as it is."""
        ...


def deployed(recipe: Recipe, network: nn.Module) -> nn.Module:
    """Return a network as it is exported: by the recipe's own `deploy`, else folded."""
    with extensions.blamed(f"recipe {recipe.name}"):
        return (recipe.deploy or fold)(network).eval()


def changes(recipe: Recipe, network: nn.Module) -> bool:
    """Return whether `deployed` may compute otherwise than `network` does."""
    modules = list(network.modules())
    chains = [module for module in modules if isinstance(module, nn.Sequential)]
    return (
        recipe.deploy is not None
        or any(isinstance(module, Foldable) for module in modules)
        or any(_folds(*pair) for chain in chains for pair in itertools.pairwise(chain))
    )


def fold(network: nn.Module) -> nn.Module:
    """Return a copy of `network`, in eval mode, with every fold done that is exact.

    Folded are modules with a `folded()` method, and a convolution directly followed by a batch
    norm in an `nn.Sequential`. Weights are computed in float64 and stored as they were.
    """
    with torch.no_grad():
        return _folded(copy.deepcopy(network).eval())


def _folded(module: nn.Module) -> nn.Module:
    if isinstance(module, Foldable):
        return _folded(module.folded())
    for name, child in module.named_children():
        setattr(module, name, _folded(child))
    if isinstance(module, nn.Sequential):
        _fold_neighbours(module)
    return module


def as_stored(network: nn.Module, names: AbstractSet[str]) -> nn.Module:
    """Return `network` with those parts folded that are folded in a checkpoint already.

    names: of the weights in the checkpoint. A part is folded where its folded weights are all
    there and some of its own are not.
    """
    for path, module in list(network.named_modules()):
        if not isinstance(module, Foldable) or not path:
            continue
        simple: nn.Module = cast("nn.Module", module)
        folds = 0
        while isinstance(simple, Foldable) and not _weights(simple, path) <= names:
            simple, folds = simple.folded(), folds + 1
        if folds and _weights(simple, path) <= names:
            parent, _, last = path.rpartition(".")
            setattr(network.get_submodule(parent), last, simple)
    return network


def _weights(module: nn.Module, path: str) -> set[str]:
    """Return the names of a module's weights in the network that has it under `path`."""
    return {f"{path}.{name}" for name in module.state_dict() if not name.endswith(_COUNTER)}


def _fold_neighbours(chain: nn.Sequential) -> None:
    for i in range(len(chain) - 1):
        if _folds(chain[i], chain[i + 1]):
            pair = cast("tuple[nn.Conv2d, nn.BatchNorm2d]", (chain[i], chain[i + 1]))
            chain[i], chain[i + 1] = fuse(*pair), nn.Identity()


def _folds(layer: nn.Module, norm: nn.Module) -> bool:
    """Return whether two neighbours are a convolution and its batch norm."""
    fixed = isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    return fixed and isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))


def fuse(conv: Conv, norm: nn.BatchNorm2d) -> Conv:
    """Return one convolution that equals `norm(conv(x))` with the stored statistics."""
    return with_weights(conv, *_equivalent(conv, norm))


def _equivalent(
    conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Return weight and bias, in float64, of the convolution that equals `norm(conv(x))`.

    weight' = weight * gamma / s, bias' = (bias - mean) * gamma / s + beta, s = sqrt(var + eps),
    per output channel.
    """
    scale, shift = scale_and_shift(norm)
    weight = conv.weight.double()
    if isinstance(conv, nn.ConvTranspose2d):  # weight: [in, out / groups, kernel, kernel]
        grouped = weight.reshape(conv.groups, -1, *weight.shape[1:])
        weight = (grouped * scale.reshape(conv.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:  # [out, in / groups, kernel, kernel]
        weight = weight * scale.reshape(-1, 1, 1, 1)
    return weight, shift if conv.bias is None else shift + conv.bias.double() * scale


def with_weights(conv: Conv, weight: Tensor, bias: Tensor) -> Conv:
    """Return a copy of `conv` with other values, stored as its own are."""
    changed = copy.deepcopy(conv)
    changed.weight = nn.Parameter(weight.to(conv.weight.dtype))
    changed.bias = nn.Parameter(bias.to(conv.weight.dtype))
    return changed


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return `norm` in eval mode as x * scale + shift: two float64[channels]."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + norm.eps).rsqrt()
    if not norm.affine:
        return scale, -mean.double() * scale
    scale = scale * norm.weight.double()
    return scale, norm.bias.double() - mean.double() * scale


class Phases(nn.Module):
    """A transposed convolution without overlap and an activation, as a 1x1 convolution.

    The same numbers, in an op that INT8 engines have. Each input pixel becomes a block of `step` *
    `step`; the pixels of one place in their blocks are a phase, and a map of their own here, so
    that pointwise layers may follow before `join` interleaves what they leave.
    """

    def __init__(self, source: nn.ConvTranspose2d, activation: nn.Module) -> None:
        """Take the weights of `source`: its stride is its kernel, and it has no padding."""
        super().__init__()
        self.step, self.channels = source.kernel_size[0], source.out_channels
        self.count = self.step**2
        self.conv = nn.Conv2d(
            source.in_channels, self.count * self.channels, 1, dtype=source.weight.dtype
        )
        with torch.no_grad():
            # [in, out, step, step] -> [step * step * out, in, 1, 1]
            weight = source.weight.permute(2, 3, 1, 0).reshape(self.conv.weight.shape)
            self.conv.weight.copy_(weight)
            assert self.conv.bias is not None
            bias = weight.new_zeros(self.channels) if source.bias is None else source.bias
            self.conv.bias.copy_(bias.repeat(self.count))
        self.act = activation

    @staticmethod
    def replaces(module: nn.Module) -> bool:
        """Return whether `module` is a transposed convolution that this can stand for."""
        return (
            isinstance(module, nn.ConvTranspose2d)
            and module.groups == 1
            and module.kernel_size == module.stride
            and module.kernel_size[0] == module.kernel_size[1]
            and module.dilation == (1, 1)
            and module.padding == module.output_padding == (0, 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch * count, out, H, W], the phases of an image beside each other."""
        rows: Tensor = self.act(self.conv(x))
        return rows.reshape(-1, self.channels, *x.shape[2:])

    def join(self, phases: Tensor) -> Tensor:
        """Return [batch, H * step, W * step] of [batch * count, H, W]."""
        height, width = phases.shape[1:]
        split = phases.reshape(-1, self.step, self.step, height, width)
        return split.permute(0, 3, 1, 4, 2).reshape(-1, height * self.step, width * self.step)


class ConvNorm(nn.Module):
    """Convolution, batch norm, and an activation where one is given."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        """Make the layers for `channels` (in, out); the padding keeps the size at stride 1."""
        super().__init__()
        self.conv = nn.Conv2d(
            *channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(channels[1])
        self.act = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        return cast("Tensor", self.act(self.bn(self.conv(x))))

    def equivalent(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias, in float64, of the two layers as one convolution."""
        return _equivalent(self.conv, self.bn)

    def folded(self) -> nn.Module:
        """Return the convolution with the batch norm inside, and the activation."""
        return FoldedNorm(fuse(self.conv, self.bn), self.act)


class FoldedNorm(nn.Module):
    """What a `ConvNorm` becomes: a convolution with a bias, and the activation."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        """Keep the convolution under the name it had before."""
        super().__init__()
        self.conv, self.act = conv, activation

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        return cast("Tensor", self.act(self.conv(x)))


class RepVGGBlock(nn.Module):
    """ReLU of the sum of a 3x3 branch, a 1x1 branch and, where shapes allow, the input itself.

    Every branch ends in its own batch norm. Source: RepVGG (arXiv 2101.03697, section 3.3);
    parameter names of github.com/DingXiaoH/RepVGG (MIT).
    """

    def __init__(self, channels: tuple[int, int], *, stride: int = 1, groups: int = 1) -> None:
        """Make the branches for `channels` (in, out)."""
        super().__init__()
        same = channels[0] == channels[1] and stride == 1
        self.rbr_identity = nn.BatchNorm2d(channels[0]) if same else None
        self.rbr_dense = ConvNorm(channels, 3, stride=stride, groups=groups)
        self.rbr_1x1 = ConvNorm(channels, 1, stride=stride, groups=groups)
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        return cast("Tensor", self.nonlinearity(self.summed(x)))

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of the branches, shaped as the result."""
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        return cast("Tensor", total if self.rbr_identity is None else total + self.rbr_identity(x))

    def folded(self) -> nn.Module:
        """Return one 3x3 convolution, called `rbr_reparam`, and the ReLU."""
        return FoldedBlock(self.kernel())

    def kernel(self) -> nn.Conv2d:
        """Return one 3x3 convolution that equals the sum of the branches."""
        conv = self.rbr_dense.conv
        weight, bias = self.rbr_dense.equivalent()
        point, point_bias = self.rbr_1x1.equivalent()
        weight, bias = weight + F.pad(point, [1, 1, 1, 1]), bias + point_bias
        if self.rbr_identity is not None:
            scale, shift = scale_and_shift(self.rbr_identity)
            weight = weight + identity_kernel(conv) * scale.reshape(-1, 1, 1, 1)
            bias = bias + shift
        return with_weights(conv, weight, bias)


class FoldedBlock(nn.Module):
    """What a `RepVGGBlock` becomes: a 3x3 convolution and a ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """Keep the convolution under the name that folded RepVGG checkpoints use."""
        super().__init__()
        self.rbr_reparam = conv
        self.nonlinearity = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return float32[batch, out, ceil(H / stride), ceil(W / stride)]."""
        return cast("Tensor", self.nonlinearity(self.rbr_reparam(x)))


def identity_kernel(conv: nn.Conv2d) -> Tensor:
    """Return the 3x3 kernel, float64[out, in / groups, 3, 3], that passes its input through."""
    kernel = torch.zeros_like(conv.weight, dtype=torch.float64)
    per_group = conv.in_channels // conv.groups
    rows = torch.arange(conv.out_channels, device=kernel.device)
    kernel[rows, rows % per_group, 1, 1] = 1
    return kernel
