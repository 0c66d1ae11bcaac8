from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.data import samples, sources
from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import SOURCES
from deploykit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

README = SOURCES.folder() / "README.md"


def test_every_source_has_a_row_in_the_readme() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(SOURCES.shipped())


@pytest.mark.parametrize("name", sorted(SOURCES.shipped()))
def test_a_source_is_called_as_its_file(name: str) -> None:
    source = SOURCES.load(name)
    assert source.name == name
    assert source.summary


def test_the_readmes_own_source_works(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "frames.py"
    file.write_text(code, encoding="utf-8")
    clip = np.arange(5 * 4 * 6 * 3, dtype=np.uint8).reshape(5, 4, 6, 3)
    np.save(tmp_path / "clip.npy", clip)
    data = sources.dataset(f"{file}:{tmp_path / 'clip.npy'}")
    (batch,) = samples.batches(data, Preprocess((4, 6)), 5)
    assert batch.names == ("00000", "00001", "00002", "00003", "00004")
    np.testing.assert_allclose(batch.images, clip.transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    with pytest.raises(DataError, match="no such clip"):
        sources.dataset(f"{file}:absent.npy")
