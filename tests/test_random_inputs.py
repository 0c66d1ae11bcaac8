"""Random inputs for models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.data.feeding import IMAGE_SIZES
from deploykit.errors import ModelError
from deploykit.proof import random_inputs
from deploykit.values import TensorSpec

IMAGES = TensorSpec("images", "float32", ("batch", 3, 40, 24))


@given(st.integers(0, 2**31), st.integers(1, 3))
def test_random_images_repeat_by_seed_and_lie_between_0_and_1(seed: int, count: int) -> None:
    first = random_inputs.images(IMAGES, seed, count)
    assert first.shape == (count, 3, 40, 24)
    assert first.dtype == np.float32
    assert np.array_equal(first, random_inputs.images(IMAGES, seed, count))
    assert not np.array_equal(first, random_inputs.images(IMAGES, seed + 1, count))
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


def test_random_images_have_large_and_small_structure() -> None:
    spec = TensorSpec("x", "float32", ("n", 1, 64, 64))
    image = random_inputs.images(spec, 0, 1)[0, 0].astype(np.float64)
    blocks = image.reshape(4, 16, 4, 16)
    assert blocks.mean(axis=(1, 3)).std() > 0.08  # pure noise: 0.5 / sqrt(12) / 16 = 0.009
    assert blocks.std(axis=(1, 3)).min() > 0.1


@pytest.mark.parametrize(
    ("dtype", "levels"),
    [("uint8", 256), ("int64", 2), ("int8", 2), ("bool", 2)],
)
def test_integer_inputs_get_every_level(dtype: str, levels: int) -> None:
    values = random_inputs.images(TensorSpec("x", dtype, (64, 64, 64)), 1, 1)
    assert values.dtype == dtype
    found = np.unique(values.astype(np.int64))
    assert (found[0], found[-1]) == (0, levels - 1)


def test_random_feeds_fill_every_input_and_keep_a_fixed_batch() -> None:
    specs = (TensorSpec("a", "float32", ("n", 3)), TensorSpec("b", "float16", (4, 3, 8, 8)))
    feeds = random_inputs.feeds((*specs, TensorSpec("c", "float32", ())), seed=1, batch=2)
    assert {name: array.shape for name, array in feeds.items()} == {
        "a": (2, 3),
        "b": (4, 3, 8, 8),
        "c": (),
    }
    assert feeds["b"].dtype == np.float16


def test_images_end_within_their_canvases_every_other_one_with_them() -> None:
    specs = (IMAGES, TensorSpec(IMAGE_SIZES, "float32", ("batch", 2)))
    found = random_inputs.feeds(specs, seed=1, batch=50)[IMAGE_SIZES].astype(np.float64)
    assert np.array_equal(found[::2], np.tile([40, 24], (25, 1)))
    assert (found >= [20, 12]).all()
    assert (found <= [40, 24]).all()
    assert np.unique(found[1::2], axis=0).shape[0] > 15


def test_an_input_of_open_size_or_of_text_is_refused() -> None:
    with pytest.raises(ModelError, match="dimension 'height'"):
        random_inputs.images(TensorSpec("x", "float32", ("n", 3, "height", 8)), 0, 1)
    with pytest.raises(ModelError, match="cannot make random values"):
        random_inputs.images(TensorSpec("x", "string", ("n",)), 0, 1)
