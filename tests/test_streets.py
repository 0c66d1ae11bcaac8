"""Made-up street scenes: their truth, their tree, and that they follow from their spec alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from deploykit.data import sources
from deploykit.data.streets import parts
from deploykit.errors import OptionError
from deploykit.tasks.cityscapes import labels

ROOT = Path(__file__).parent.parent
SMALL = "streets:count=6,size=160x96"


def opened(spec: str) -> list[tuple[Any, Any]]:
    return [(s.read(), s.truth and s.truth()) for s in sources.dataset(spec).samples]


def fingerprint(spec: str) -> str:
    found = hashlib.sha256()
    for image, truth in opened(spec):
        found.update(image.tobytes() + truth.instances.tobytes())
    return found.hexdigest()


def test_scenes_follow_from_their_spec_in_every_process() -> None:
    code = f"import test_streets as t; print(t.fingerprint({SMALL!r}))"
    command = [sys.executable, "-c", code]
    places = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONHASHSEED": "7"}
    other = subprocess.run(command, capture_output=True, text=True, check=True, env=places)
    assert other.stdout.strip() == fingerprint(SMALL)


def test_splits_seeds_and_truths_differ_as_they_should() -> None:
    first, (image, semantic) = opened(SMALL)[:2]
    assert image.shape == (96, 160, 3)
    assert not (first[0] == image).all()
    for other in (f"{SMALL},split=train", f"{SMALL},seed=2"):
        assert not (opened(other)[1][0] == image).all()
    instance = opened(f"{SMALL},truth=instance")[1][1]
    assert (instance.instances == semantic.instances).all()
    objects = opened(f"{SMALL},truth=objects")[1][1]
    seen = [v for v in np.unique(semantic.instances).tolist() if v // 1000 in labels.THINGS]
    assert sum(not a["iscrowd"] for a in objects.annotations) == len(seen)


def test_all_scored_classes_groups_and_ignored_regions_occur_but_not_in_each_scene() -> None:
    truths = [truth for _, truth in opened("streets:count=60,size=192x96")]
    counts = np.zeros(len(labels.LABELS), np.int64)
    for truth in truths:
        counts[np.unique(truth.labels)] += 1
    assert (counts[list(labels.CLASSES)] > 0).all()
    assert all(counts[n] < len(truths) for n in labels.THINGS)
    assert counts[labels.BY_NAME["ego vehicle"].number]
    plain = {v for t in truths for v in np.unique(t.instances).tolist() if v in labels.THINGS}
    assert plain  # groups


def test_a_scene_s_tree_says_what_the_scene_does(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "calib/streets.py"), SMALL.partition(":")[2]]
    places = {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(tmp_path)], check=True, env=places)
    wanted = opened(SMALL)
    for drawn in (False, True):
        if drawn:
            for path in tmp_path.glob("gtFine/val/*/*Ids.png"):
                path.unlink()
        data = sources.dataset(f"cityscapes:{tmp_path}")
        assert [s.name for s in data.samples] == [f"streets_000001_{i:06d}" for i in range(6)]
        for (image, truth), sample in zip(wanted, data.samples, strict=True):
            found: Any = sample.truth and sample.truth()
            assert (sample.read() == image).all()
            assert (found.labels == truth.labels).all()
            assert (found.instances == truth.instances).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_cut_to_its_image_covers_what_the_whole_covers_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    middle = rng.uniform(-20, 60, 2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    corners = middle + 30 * np.stack([np.cos(angles), np.sin(angles)], 1)
    part = parts.Part("car", tuple((int(x), int(y)) for x, y in corners), (0, 0, 0), "soft", 0)
    kept = parts.within(part, 30, 40)

    def covered(points: Any) -> Any:
        image = Image.new("1", (40, 30))
        ImageDraw.Draw(image).polygon([(x, y) for x, y in points], fill=1)
        return np.asarray(image)

    whole = covered(part.corners)
    if kept is None:
        assert whole.mean() < 0.05
        return
    assert all(0 <= x < 40 and 0 <= y < 30 for x, y in kept.corners)
    assert (covered(kept.corners) != whole).mean() < 0.05


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("size=512", "streets: size='512'"),
        ("size=8x512", "each from 32 to 4096"),
        ("count=0", "an integer from 1 to"),
        ("split=test", "unknown split of streets 'test'"),
        ("truth=map", "unknown truth of streets 'map'"),
        ("colour=red", "unknown option of streets 'colour'"),
        ("seed=1,seed=2", "seed is given twice"),
    ],
)
def test_a_wrong_spec_is_refused(spec: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        sources.dataset(f"streets:{spec}")
