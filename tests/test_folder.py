from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from deploykit.data import sources
from deploykit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "teal").save(path)


def test_nested_images_are_listed_by_sorted_relative_path(tmp_path: Path) -> None:
    put(tmp_path, "b.png", "a/z.JPG", "a/c.webp", "a/deep/er/x.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    data = sources.dataset(f"folder:{tmp_path}")
    assert [s.name for s in data.samples] == ["a/c.webp", "a/deep/er/x.bmp", "a/z.JPG", "b.png"]
    assert all(sample.truth is None for sample in data.samples)
    assert data.samples[1].read().shape == (2, 3, 3)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "seen.png", ".hidden.png", ".cache/x.png", "._seen.png")
    assert [s.name for s in sources.dataset(f"folder:{tmp_path}").samples] == ["seen.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [((), "0 other files"), (("a.txt",), "1 other file"), (("a.txt", "b.npy"), "2 other files")],
)
def test_a_folder_without_images_says_what_it_holds(
    tmp_path: Path, content: tuple[str, ...], message: str
) -> None:
    for name in content:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"holds no images: {message}") as caught:
        sources.dataset(f"folder:{tmp_path}")
    assert ".jpg" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_is_no_folder_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "one.png")
    with pytest.raises(DataError, match="no folder is given"):
        sources.dataset("folder:")
    with pytest.raises(DataError, match="no such folder"):
        sources.dataset(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(DataError, match="it is a file"):
        sources.dataset(f"folder:{tmp_path / 'one.png'}")


def test_a_damaged_image_is_found_when_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    bad, good = sources.dataset(f"folder:{tmp_path}").samples
    assert good.read().shape == (2, 3, 3)
    with pytest.raises(DataError, match=r"bad\.jpg"):
        bad.read()
