"""A float model that gives NaN or infinity is named: its first such layer, and the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from foreign_nets import SIDE, WIDTH, Net
from PIL import Image

from deploykit import pipeline
from deploykit.errors import InputError, ProofError
from deploykit.recipes.describing import Description

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ABOUT = Description(preprocess="unit")


def of_negatives(net: Net, x: str) -> str:
    less = net.op("Sub", net.op("Relu", x), net.weight(np.float32(9)))
    return net.op("Log", less)  # NaN: nothing reaches 9


def over_zero(net: Net, x: str) -> str:
    zero = net.op("Sub", x, x)
    return net.op("Div", zero, zero)


def of_bright_images(net: Net, x: str) -> str:
    """Return infinity where an image is bright: e to the power of 30 times its mean, thrice."""
    mean = net.op("ReduceMean", "images", net.weight(np.array([1, 2, 3])), keepdims=1)
    power = net.op("Mul", mean, net.weight(np.float32(120)))
    return net.op("Mul", x, net.op("Exp", power))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of four dark images and a bright one, the third."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 40, (SIDE, SIDE, 3)) + (200 if i == 2 else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def saved(
    path: Path, wrong: Callable[[Net, str], str], batch: int | str, *, behind: bool = True
) -> Path:
    """Write two layers with something between them that is not finite, or behind them."""
    net = Net()
    first = net.op("Relu", net.conv("images", 3, WIDTH))
    y = net.conv(wrong(net, first), WIDTH, WIDTH) if behind else wrong(net, first)
    return net.save(path, y, (batch, 3, SIDE, SIDE))


def quantized(path: Path, photos: Path, **options: Any) -> tuple[str, ...]:
    out = path.with_suffix(".int8.onnx")
    given = pipeline.QuantizeOptions(source=f"folder:{photos}", about=ABOUT, **options)
    return pipeline.quantize(path, out, given).notes


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_calibration_names_the_image_and_the_first_layer(
    batch: int | str, photos: Path, tmp_path: Path
) -> None:
    net = Net()
    x = of_bright_images(net, net.op("Relu", net.conv("images", 3, WIDTH)))
    y = net.conv(net.op("Relu", net.conv(x, WIDTH, WIDTH)), WIDTH, WIDTH)
    path = net.save(tmp_path / "m.onnx", y, (batch, 3, SIDE, SIDE))
    with pytest.raises(InputError) as caught:
        quantized(path, photos, int8_layers=("computed",))
    assert "takes the value" in caught.value.found
    assert "infinity on 2.png, first at Exp_4 (Exp)" in caught.value.found
    assert "preprocess" in caught.value.fix


@pytest.mark.parametrize(("wrong", "layer"), [(of_negatives, "Log_4"), (over_zero, "Div_3")])
def test_outputs_of_the_float_model_that_are_not_finite_are_noted(
    wrong: Callable[[Net, str], str], layer: str, photos: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "m.onnx", wrong, 1, behind=False)
    said = "the float model itself gives NaN or infinity on"
    assert any(
        note.startswith(f"{said} 0.png, first at {layer}") for note in quantized(path, photos)
    )
    notes = pipeline.cast(path, tmp_path / "half.onnx", about=ABOUT).notes
    assert any(note.startswith(f"{said} random pixels, first at {layer}") for note in notes)


def test_a_proof_that_fails_says_that_the_float_model_is_not_finite(
    photos: Path, tmp_path: Path
) -> None:
    def root(net: Net, x: str) -> str:
        return net.op("Sqrt", net.conv(x, WIDTH, WIDTH))

    path = saved(tmp_path / "m.onnx", root, 1, behind=False)
    with pytest.raises(ProofError, match=r"on 0\.png, first at Sqrt_3 \(Sqrt\)") as caught:
        quantized(path, photos)
    assert caught.value.expected == "numbers"
    assert "plan" not in caught.value.fix


def test_what_is_finite_again_behind_a_choice_is_not_named(photos: Path, tmp_path: Path) -> None:
    def chosen(net: Net, x: str) -> str:
        over = net.op("Div", net.weight(np.float32(1)), net.op("Sub", x, x))
        return net.op("Where", net.op("IsInf", over), x, net.weight(np.float32(0)))

    notes = quantized(saved(tmp_path / "m.onnx", chosen, 1), photos)
    assert not any("itself" in note for note in notes)


def test_weights_that_are_not_finite_are_said_so(photos: Path, tmp_path: Path) -> None:
    def product(net: Net, x: str) -> str:
        factors = np.ones((1, WIDTH, 1, 1), np.float32)
        factors[0, 3] = np.nan
        return net.op("Mul", x, net.weight(factors))

    notes = quantized(saved(tmp_path / "m.onnx", product, 1, behind=False), photos)
    said = [note for note in notes if "itself" in note]
    assert said
    assert said[0].endswith("first at Mul_2 (Mul), which holds such numbers")
