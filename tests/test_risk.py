"""What INT8 may cost, foretold from weights: beside what it does cost, computed by PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from skewing import one, skewed

from deploykit import pipeline
from deploykit.cli import printing
from deploykit.errors import StaleTableError
from deploykit.pipeline import QuantizeOptions
from deploykit.precision import risk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    Graph = Callable[..., ir.Model]

CONV = "Conv<pads=[1,1,1,1]>"
TEXT = (
    "(float[N,3,32,32] x) => (float[N,8,32,32] y) { "
    f"[one] a = {CONV}(x, w0) [r0] b = Relu(a) [two] c = {CONV}(b, w1) [r1] d = Relu(c) "
    f"[three] y = {CONV}(d, w2) }}"
)


def weights(factor: float = 1.0, peak: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """Return random kernels of one function; factor: of a channel that two gives, and three takes.

    peak: What the centre of each kernel of three has more.
    """
    random = np.random.default_rng(3)
    w0, w1, w2 = (
        random.normal(size=shape) for shape in ((16, 3, 3, 3), (16, 16, 3, 3), (8, 16, 3, 3))
    )
    w1[5] *= factor
    w2[:, 5] /= factor
    w2[:, 0, 1, 1] += peak
    return {"w0": w0.astype("f4"), "w1": w1.astype("f4"), "w2": w2.astype("f4")}


def measured(given: dict[str, NDArray[np.float32]]) -> float:
    """Return decibels of signal over rounding in what `three` gives, by minmax on random images."""
    w0, w1, w2 = (torch.from_numpy(given[name]).double() for name in ("w0", "w1", "w2"))
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double() - 0.5
    d = F.conv2d(F.conv2d(x, w0, padding=1).relu(), w1, padding=1).relu()
    steps = w2.abs().amax((1, 2, 3), keepdim=True) / 127
    step = d.abs().max() / 127
    exact, rounded = (
        F.conv2d(*pair, padding=1)
        for pair in ((d, w2), ((d / step).round() * step, (w2 / steps).round() * steps))
    )
    noise = (rounded - exact).square().mean((0, 2, 3)) / exact.square().mean((0, 2, 3))
    return float(-10 * noise.mean().log10())


def foretold(graph: Graph, given: dict[str, NDArray[np.float32]]) -> risk.LayerRisk:
    found = risk.risk(graph(TEXT, **given))
    assert found is not None
    assert found.total == 3
    return next(layer for layer in found.layers if layer.name == "three")


@pytest.mark.parametrize(("factor", "peak"), [(1.0, 0.0), (10.0, 0.0), (100.0, 0.0), (1.0, 30.0)])
def test_the_estimate_is_near_to_what_rounding_does(
    graph: Graph, factor: float, peak: float
) -> None:
    given = weights(factor, peak)
    assert foretold(graph, given).decibels == pytest.approx(measured(given), abs=4.0)


def test_a_channel_that_reaches_far_is_uneven_by_its_factor_and_a_peak_is_seen(
    graph: Graph,
) -> None:
    plain, far, peaked = (foretold(graph, weights(*how)) for how in ((), (100.0,), (1.0, 30.0)))
    assert 35 < far.uneven - plain.uneven < 41, "at most 20 log10(100) dB"
    assert far.decibels < risk.HIGH < plain.decibels
    assert plain.kernel < 5
    assert peaked.kernel > 7
    assert peaked.decibels < plain.decibels - 3


def test_a_network_that_multiplies_nothing_known_has_no_risk(graph: Graph) -> None:
    assert risk.risk(graph("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")) is None


def test_channels_are_followed_through_concat_sum_and_gates(graph: Graph) -> None:
    text = (
        "(float[N,3,8,8] x) => (float[N,4,8,8] y) { "
        f"a = {CONV}(x, w0) g = Sigmoid(a) b = Mul(a, g) c = {CONV}(x, w1) d = Add(b, c) "
        f"e = MaxPool<kernel_shape=[1,1]>(c) k = Concat<axis=1>(d, e) [last] y = {CONV}(k, w2) }}"
    )
    random = np.random.default_rng(0)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 3, 3, 3), "w2": (4, 16, 3, 3)}
    arrays = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    arrays["w1"][2] *= 50
    found = risk.risk(graph(text, **arrays))
    assert found is not None
    (last,) = found.layers
    assert last.name == "last"
    assert last.uneven == pytest.approx(10 * np.log10(16 / 2), abs=1.5), "two of sixteen reach far"


def test_weights_beyond_all_numbers_are_left_out(graph: Graph) -> None:
    given = weights()
    given["w1"] = np.full_like(given["w1"], 3e38)
    given["w0"] = np.full_like(given["w0"], np.inf)
    found = risk.risk(graph(TEXT, **given))
    assert found is None or all(np.isfinite(layer.decibels) for layer in found.layers)


@pytest.fixture(scope="module")
def skew(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test model with the same function, a channel of each layer of one stage times 100."""
    path = tmp_path_factory.mktemp("skew") / "skewed.onnx"
    made = onnx.load(model)
    skewed(made, one(100.0), within="ERBlock_4")
    onnx.save(made, path)
    return path


def test_inspect_says_the_risk_of_float_and_of_int8_files_and_by_a_table(
    model: Path, skew: Path, photos: Path, tmp_path: Path
) -> None:
    plain, high = pipeline.inspect(model), pipeline.inspect(skew)
    assert plain.risk is not None
    assert high.risk is not None
    assert (plain.risk.level, high.risk.level) == ("low", "high")
    said = printing.inspection(high)
    assert "risk: high: estimated from weights alone for" in said
    assert "ERBlock_4" in said
    assert high.to_json()["risk"]["layers"][0]["decibels"] < risk.HIGH
    table = tmp_path / "ranges.json"
    how = QuantizeOptions(source=f"folder:{photos}", table=table, repair=("none",))
    pipeline.quantize(skew, tmp_path / "int8.onnx", how)
    for path, given in ((skew, table), (tmp_path / "int8.onnx", None)):
        stepped = pipeline.inspect(path, table=given).risk
        assert stepped is not None
        assert stepped.basis.startswith("estimated from weights and steps")
        assert stepped.layers[0].decibels == pytest.approx(high.risk.layers[0].decibels, abs=3.0)
    with pytest.raises(StaleTableError):
        pipeline.inspect(model, table=table)
