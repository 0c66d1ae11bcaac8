"""A folder of images, nested as deep as one likes; no truth."""

from __future__ import annotations

from functools import partial

from deploykit.data import images, listing
from deploykit.data.sources import Dataset, Sample, Source


def _open(location: str) -> Dataset:
    """Return the images below `location`, sorted by relative path; hidden names are left out."""
    root = images.folder(location)
    names = listing.below(root)
    samples = [Sample(name, partial(images.decode, root / name)) for name in names]
    return Dataset(f"folder:{location}", samples)


source = Source("folder", "a folder of images, without truth", _open)
