"""Channels that reach equally far: the function stays, bit by bit, wherever it may."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from foreign_nets import SIDE, WIDTH, Net

from deploykit.errors import InputError
from deploykit.files import onnxfile
from deploykit.precision.repairs import channels, equalisation, reaching
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.recipes.opened import Opened

    Build = Callable[[Net], str]


def biased(net: Net, x: str, before: int, behind: int, **attributes: Any) -> str:
    shape = (behind, before // attributes.get("group", 1), 3, 3)
    bias = net.weight(net.random.standard_normal(behind).astype(np.float32))
    weights = net.weight(net.kernel(*shape))
    return net.op("Conv", x, weights, bias, kernel_shape=[3, 3], pads=[1] * 4, **attributes)


def factors_of(model: ir.Model, reaches: Any) -> Any:
    """What the channels of a model would be divided by."""
    return equalisation.Balance.of(channels.trace(model), reaches).factors()


def first(net: Net) -> str:
    return net.op("Relu", biased(net, "images", 3, WIDTH))


def last(net: Net, x: str, channels_: int = WIDTH) -> str:
    return biased(net, x, channels_, 4)


def chain(net: Net) -> str:
    return last(net, net.op("Relu", biased(net, first(net), WIDTH, WIDTH)))


def residual(net: Net) -> str:
    x = first(net)
    for _ in range(2):
        inner = net.op("Relu", biased(net, x, WIDTH, WIDTH))
        x = net.op("Relu", net.op("Add", biased(net, inner, WIDTH, WIDTH), x))
    return last(net, x)


def depthwise(net: Net) -> str:
    x = net.op("Relu", biased(net, first(net), WIDTH, WIDTH, group=WIDTH))
    return last(net, net.op("LeakyRelu", biased(net, x, WIDTH, WIDTH, group=4), alpha=0.1))


def pyramid(net: Net) -> str:
    x = first(net)
    small = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    scales = net.weight(np.array([1, 1, 2, 2], np.float32))
    large = net.op("Resize", biased(net, small, WIDTH, 8), "", scales, mode="nearest")
    both = net.op("Concat", large, x, large, axis=1)
    return last(net, both, WIDTH + 16)


def classifier(net: Net) -> str:
    slopes = net.weight(np.full((WIDTH, 1, 1), 0.25, np.float32))
    x = net.op("PRelu", biased(net, first(net), WIDTH, WIDTH), slopes)
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    hidden = net.weight(net.kernel(WIDTH, 8))
    x = net.op("Relu", net.op("Gemm", flat, hidden))
    return net.op("Gemm", x, net.weight(net.kernel(4, 8)), transB=1)


def places(net: Net) -> str:
    """A flattened map, as LeNet's: a channel is many inputs of the Gemm."""
    x = net.op("AveragePool", first(net), kernel_shape=[8, 8], strides=[8, 8])
    size = WIDTH * (SIDE // 8) ** 2
    return net.op("Gemm", net.op("Flatten", x), net.weight(net.kernel(4, size)), transB=1)


def parts(net: Net) -> str:
    left = net.op("Slice", first(net), *(net.weight(np.array([n])) for n in (2, 10, 1)))
    upper = net.weight(net.kernel(8, 6, 2, 2))
    x = net.op("ConvTranspose", left, upper, kernel_shape=[2, 2], strides=[2, 2])
    return last(net, net.op("Relu", x), 6)


def shared(net: Net) -> str:
    """One head on two levels, with a bias that another layer adds too."""
    bias = net.weight(net.random.standard_normal(WIDTH).astype(np.float32))
    head, other = (net.weight(net.kernel(WIDTH, WIDTH, 3, 3)) for _ in range(2))
    form = {"kernel_shape": [3, 3], "pads": [1] * 4}
    x = first(net)
    a = net.op("Relu", net.op("Conv", x, head, bias, **form))
    small = net.op("Relu", net.op("Conv", x, other, bias, **form))
    b = net.op("Relu", net.op("Conv", small, head, bias, **form))
    return net.op("Add", last(net, a), last(net, b))


def gated(net: Net) -> str:
    x = first(net)
    squeezed = net.op("GlobalAveragePool", x)
    weights = net.weight(net.kernel(WIDTH, WIDTH, 1, 1))
    gate = net.op("Sigmoid", net.op("Conv", squeezed, weights, kernel_shape=[1, 1]))
    return last(net, net.op("Mul", x, gate))


def saved(build: Build, folder: Path) -> Opened:
    net = Net()
    output = build(net)
    return opened.read(net.save(folder / "net.onnx", output, ("batch", 3, SIDE, SIDE)))


def run(model: ir.Model) -> NDArray[Any]:
    images = np.random.default_rng(1).random((2, 3, SIDE, SIDE), np.float32)
    session = ort.InferenceSession(onnxfile.to_bytes(model, Path("net.onnx")))
    found: NDArray[Any] = session.run(None, {"images": images})[0]
    return found


def wild(model: Opened) -> dict[str, NDArray[np.float64]]:
    """Reaches of all channels, far apart."""
    random, graph = np.random.default_rng(2), model.copy()
    return {
        name: np.exp(random.normal(0, 2, len(slots)))
        for name, slots in channels.trace(graph).tensors.items()
    }


@pytest.mark.parametrize(
    "build",
    [chain, residual, depthwise, pyramid, classifier, places, parts, shared, gated],
    ids=lambda build: build.__name__,
)
def test_whatever_the_ranges_are_the_outputs_keep_every_bit(build: Build, tmp_path: Path) -> None:
    model = saved(build, tmp_path)
    factors = factors_of(model.copy(), wild(model))
    assert factors
    assert max(abs(e) for each in factors.values() for e in each) > 2
    graph = model.copy()
    equalisation.apply(graph, factors)
    np.testing.assert_array_equal(run(graph), run(model.graph))


@pytest.mark.parametrize("build", [chain, residual, depthwise, pyramid, shared])
def test_channels_that_reach_a_hundred_times_as_far_come_into_line(
    build: Build, tmp_path: Path
) -> None:
    model = saved(build, tmp_path)
    tensors = list(channels.trace(model.copy()).tensors)
    feeds = [{"images": np.random.default_rng(3).random((4, 3, SIDE, SIDE), np.float32)}]
    plain = reaching.reaches(model, tensors, feeds)
    skew = factors_of(model.copy(), wild(model))
    graph = model.copy()
    equalisation.apply(graph, {n: tuple(-3 * e for e in each) for n, each in skew.items()})
    skewed = opened.made(graph, model.path)
    reached = reaching.reaches(skewed, tensors, feeds)
    factors = factors_of(skewed.copy(), reached)
    levelled = equalisation.scaled(channels.trace(skewed.copy()), factors, reached)
    for name, reach in levelled.items():
        if name.startswith(("Relu", "Add")) and plain[name].min() > 0:
            own = plain[name].max() / plain[name].min()
            assert reach.max() / reach.min() < 8 * own, name


def clipped(net: Net, x: str) -> str:
    low, high = (net.weight(np.array(n, np.float32)) for n in (0, 6))
    return net.op("Clip", x, low, high)


def silu(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def normed(net: Net, x: str) -> str:
    ones = [net.weight(np.ones(WIDTH, np.float32)) for _ in range(2)]
    return net.op("InstanceNormalization", x, *ones)


def softmaxed(net: Net, x: str) -> str:
    return net.op("Softmax", x, axis=1)


def shifted(net: Net, x: str) -> str:
    return net.op("Add", x, net.weight(np.ones((1, WIDTH, 1, 1), np.float32)))


@pytest.mark.parametrize("function", [clipped, silu, normed, softmaxed, shifted])
def test_what_is_not_in_proportion_stops_it(
    function: Callable[[Net, str], str], tmp_path: Path
) -> None:
    model = saved(lambda net: last(net, function(net, biased(net, "images", 3, WIDTH))), tmp_path)
    assert factors_of(model.copy(), wild(model)) == {}


def test_an_output_and_what_is_added_to_it_stay(tmp_path: Path) -> None:
    model = saved(lambda net: net.op("Add", chain(net), last(net, first(net))), tmp_path)
    found = channels.trace(model.copy())
    output = str(model.graph.graph.outputs[0].name)
    assert not found.tensors[output].any()
    graph = model.copy()
    equalisation.apply(graph, factors_of(model.copy(), wild(model)))
    np.testing.assert_array_equal(run(graph), run(model.graph))


def test_a_clip_at_zero_alone_is_a_relu(tmp_path: Path) -> None:
    def build(net: Net) -> str:
        zero = net.weight(np.array(0, np.float32))
        return last(net, net.op("Clip", biased(net, "images", 3, WIDTH), zero))

    model = saved(build, tmp_path)
    assert factors_of(model.copy(), wild(model))


@pytest.mark.parametrize("reach", [0.0, np.nan, np.inf])
def test_a_range_that_is_no_number_scales_nothing(reach: float, tmp_path: Path) -> None:
    model = saved(chain, tmp_path)
    reaches = wild(model)
    for each in reaches.values():
        each[:] = reach
    factors = factors_of(model.copy(), reaches)
    assert all(abs(e) < 40 for each in factors.values() for e in each)
    graph = model.copy()
    equalisation.apply(graph, factors)
    np.testing.assert_array_equal(run(graph), run(model.graph))


def test_factors_that_would_change_the_function_are_refused(tmp_path: Path) -> None:
    model = saved(residual, tmp_path)
    factors = dict(factors_of(model.copy(), wild(model)))
    name, exponents = next(iter(factors.items()))
    for wrong in (
        {name: exponents},  # the other side of the sum would keep its scale
        {**factors, name: exponents[:-1]},
        {**factors, "no such weight": exponents},
    ):
        with pytest.raises(InputError, match="do not fit the model"):
            equalisation.apply(model.copy(), wrong)


def test_windows_of_six_dimensions_reach_as_far_as_their_values(tmp_path: Path) -> None:
    net = Net()
    split = net.op("Reshape", "images", net.weight(np.array([-1, 3, 2, SIDE // 2, 2, SIDE // 2])))
    merged = net.op("Reshape", split, net.weight(np.array([0, 3, SIDE, SIDE])))
    path = net.save(tmp_path / "m.onnx", net.conv(merged, 3, WIDTH))
    images = np.random.default_rng(0).normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    found = reaching.reaches(opened.read(path), [split], [{"images": images}])
    assert np.allclose(found[split], np.abs(images).max((0, 2, 3)))


def test_an_image_of_which_a_layer_sees_no_row_reaches_nowhere(tmp_path: Path) -> None:
    net = Net()
    map_ = net.conv("images", 3, WIDTH)
    row = net.op("Flatten", net.op("GlobalAveragePool", map_))
    path = net.save(tmp_path / "m.onnx", row, ("batch", 3, SIDE, SIDE))
    images = np.random.default_rng(0).normal(0, 1, (2, 3, SIDE, SIDE)).astype(np.float32)
    tensors, feeds = ("images", map_, row), [{"images": each} for each in (images[:0], images)]
    model = opened.read(path)
    found, plain = (reaching.reaches(model, tensors, each) for each in (feeds, feeds[1:]))
    nothing = reaching.reaches(model, tensors, feeds[:1])
    for name, width in zip(tensors, (3, WIDTH, WIDTH), strict=True):
        assert np.array_equal(found[name], plain[name])
        assert np.array_equal(nothing[name], np.zeros(width))
