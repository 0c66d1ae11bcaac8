"""Targets and optimization profiles."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.backends import _profiles, targets
from deploykit.errors import OptionError
from deploykit.values import TensorSpec

IMAGES = TensorSpec("images", "float32", ("batch", 3, 640, 640))
OPEN = TensorSpec("images", "float32", ("batch", 3, "height", "width"))
FIXED = TensorSpec("images", "float32", (1, 3, 640, 640))


@pytest.mark.parametrize("written", ["86", "sm86", "SM86", "sm_86", "8.6", " 86 "])
def test_a_target_is_known_however_it_is_written(written: str) -> None:
    assert targets.target(written).sm == "86"


@pytest.mark.parametrize(
    ("name", "sm"),
    [
        ("T4", "75"),
        ("Tesla T4", "75"),
        ("v100", "70"),
        ("A10", "86"),
        ("NVIDIA A100", "80"),
        ("RTX 3090", "86"),
        ("rtx-2080-ti", "75"),
        ("NVIDIA GeForce RTX 4070 SUPER", "89"),
        ("RTX 50", "120"),
        ("l40s", "89"),
    ],
)
def test_a_target_is_known_by_the_name_of_the_gpu(name: str, sm: str) -> None:
    assert targets.target(name).sm == sm


def test_every_gpu_that_is_listed_with_a_target_is_known_by_its_name() -> None:
    for row in targets.TARGETS.values():
        for name in row.gpus.split(", "):
            assert targets.target(name) is row
    assert set(targets.NAMES.values()) == set(targets.TARGETS)


@pytest.mark.parametrize(("text", "near"), [("T5", "T4"), ("RTX 3095", "RTX 30"), ("H10", "H100")])
def test_a_gpu_that_is_not_known_is_told_the_nearest(text: str, near: str) -> None:
    with pytest.raises(OptionError, match=f"unknown GPU or compute capability {text!r}") as caught:
        targets.target(text)
    assert near in caught.value.fix


@given(st.text(max_size=5))
def test_any_text_is_a_known_target_or_an_error_that_lists_them(text: str) -> None:
    try:
        found = targets.target(text)
    except OptionError as error:
        assert "86, " in error.expected  # noqa: PT017 - either outcome is right
        assert "A10, " in error.expected  # noqa: PT017
    else:
        assert any(c.isdigit() for c in text)
        assert targets.target(found.sm) is found


def test_targets_given_twice_are_built_once_in_the_order_given() -> None:
    assert [row.sm for row in targets.rtx_targets(("89", "86", "8.9"))] == ["89", "86"]


def test_a_v100_is_told_which_tensorrt_to_install() -> None:
    with pytest.raises(OptionError, match="SM70") as caught:
        targets.rtx_targets(("70",))
    assert "tensorrt-cu12==10.4.*" in caught.value.fix


def test_a_dynamic_batch_has_a_default_profile_that_is_said() -> None:
    found, note = _profiles.profiles((IMAGES,), {})
    assert found == {"images": ((1, 3, 640, 640), (1, 3, 640, 640), (32, 3, 640, 640))}
    assert note == (
        "profile of images: float32[batch, 3, 640, 640] (default): "
        "min 1x3x640x640, opt 1x3x640x640, max 32x3x640x640"
    )


def test_a_fixed_input_needs_no_profile() -> None:
    assert _profiles.profiles((FIXED,), {}) == ({}, "")
    same = ((1, 3, 640, 640),) * 3
    assert _profiles.profiles((FIXED,), {"images": same}) == ({}, "")


def test_a_given_profile_is_taken_as_it_is() -> None:
    shapes = ((1, 3, 320, 320), (8, 3, 640, 640), (16, 3, 960, 960))
    found, note = _profiles.profiles((OPEN,), {"images": shapes})
    assert found == {"images": shapes}
    assert "(default)" not in note


@pytest.mark.parametrize("spec", [OPEN, TensorSpec("x", "float32", (1, "n"))])
def test_other_dynamic_dimensions_ask_for_the_flags_and_suggest_values(spec: TensorSpec) -> None:
    with pytest.raises(OptionError, match="dynamic dimensions other than its batch") as caught:
        _profiles.profiles((spec,), {})
    for flag in ("--min-shapes", "--opt-shapes", "--max-shapes"):
        (shape,) = re.findall(rf"{flag} {spec.name}:(\S+)", caught.value.fix)
        assert len(shape.split("x")) == len(spec.shape)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 640), (1, 3, 640), (1, 3, 640)), "--min-shapes images:1x3x640 does not fit"),
        (((1, 3, 640, 640), (1, 4, 640, 640), (1, 3, 640, 640)), "--opt-shapes"),
        (((2, 3, 640, 640), (1, 3, 640, 640), (4, 3, 640, 640)), "min 2x3x640x640, opt 1x3"),
        (((1, 3, 640, 640), (8, 3, 640, 640), (4, 3, 640, 640)), "opt 8x3"),
    ],
)
def test_shapes_that_do_not_fit_the_input_are_refused(
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        _profiles.profiles((IMAGES,), {"images": shapes})


def test_shapes_for_an_input_that_does_not_exist_name_the_nearest() -> None:
    shapes = ((1, 3, 640, 640),) * 3
    with pytest.raises(OptionError, match="unknown input 'image'") as caught:
        _profiles.profiles((IMAGES,), {"image": (shapes[0], shapes[1], shapes[2])})
    assert "images" in caught.value.fix
