"""Trainings that follow the clock, data gathered by processes, batches changed where they are."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from deploykit.errors import OptionError
from deploykit.training import augmenting, gathering, loops, timed

if TYPE_CHECKING:
    from deploykit.data.sources import Dataset

SPEC = "shapes:split=train,seed=3,count=5,size=64,truth=class"


def test_a_course_is_over_by_its_steps_or_by_its_seconds_whichever_come_first() -> None:
    pace = timed.Pace(100, 10.0)
    assert pace.done(50, 2.0) == pytest.approx(0.5)
    assert pace.done(50, 8.0) == pytest.approx(0.8)
    assert pace.done(0, 11.0) == 1
    assert timed.Pace(100).done(99, 1e9) == pytest.approx(0.99)


def test_the_rate_rises_then_falls_to_its_end_however_far_the_steps_came() -> None:
    pace = timed.Pace(10**9, 10.0, learning_rate=2.0, warmup=0.1, final=0.05)
    rates = [pace.rate(pace.done(0, second)) for second in (0.0, 0.5, 1.0, 5.5, 10.0)]
    assert rates == pytest.approx([0.0, 1.0, 2.0, 1.05, 0.1], abs=0.01)


def test_a_network_learns_until_the_time_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    points = torch.randn(64, 2)
    truth = points @ torch.tensor([[2.0], [-1.0]])
    line = nn.Linear(2, 1)
    learnt = timed.fit(
        line,
        lambda: (points, truth),
        nn.functional.mse_loss,
        timed.Pace(300, learning_rate=0.05, weight_decay=0, decay=0.9, tell=60),
    )
    assert torch.allclose(learnt.state_dict()["weight"], torch.tensor([[2.0, -1.0]]), atol=0.02)
    assert learnt is not line
    assert capsys.readouterr().out.startswith("step 300 ")
    timed.fit(line, lambda: (points, truth), nn.functional.mse_loss, timed.Pace(10**9, 0.05))
    assert int(capsys.readouterr().out.split()[1]) < 10**9


def test_what_was_trained_is_saved_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = timed.parser("about", tmp_path / "new" / "line.pth", score="AP", images=3)
    line = nn.Linear(2, 1)
    timed.run(parser.parse_args([]), lambda _: line, "x:y")
    assert sorted(json.loads(capsys.readouterr().out)) == ["cpu_seconds", "wall_seconds"]
    kept = torch.load(tmp_path / "new" / "line.pth", weights_only=True)
    assert list(kept) == ["model"]
    assert torch.equal(kept["model"]["weight"], line.weight.detach().half())
    options = parser.parse_args(["--output", str(tmp_path / "named.pth")])
    timed.run(options, lambda _: line, "x:y", ("a", "b"))
    assert torch.load(tmp_path / "named.pth", weights_only=True)["names"] == ["a", "b"]


def test_a_checkpoint_is_scored_and_nothing_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(_: object) -> nn.Module:
        raise AssertionError

    stored = Path(__file__).parent.parent / "examples" / "shapes" / "yolov6_pico.pth"
    parser = timed.parser("about", tmp_path / "none.pth", score="AP")
    options = parser.parse_args(["--score", str(stored)])
    timed.run(options, train, "shapes:split=val,seed=1,count=4,size=160")
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 4
    assert found["ap"] > 0.2
    assert not list(tmp_path.iterdir())


def test_averages_follow_as_one_by_one_and_shared_weights_once() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    network.append(network[0])
    network[1].running_mean.fill_(4)  # type: ignore[operator]  # torch's buffers
    average = copy.deepcopy(network)
    with torch.no_grad():
        for value in average.parameters():
            value.zero_()
    timed.follow(average, network, 0.75)
    kept = average.state_dict()
    assert torch.allclose(kept["0.weight"], 0.25 * network.state_dict()["0.weight"])
    assert torch.equal(kept["1.running_mean"], torch.full((3,), 4.0))


def test_a_device_that_is_not_there_is_refused() -> None:
    assert timed.device("cpu").type == "cpu"
    with pytest.raises(OptionError, match="--device moon"):
        timed.device("moon")


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_of_a_set_are_gathered_in_order(processes: int) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    parts = gathering.gathered(len_and_first, SPEC, processes)
    assert sum(count for count, _ in parts) == 5
    assert [first for _, first in parts][:processes] == sorted(first for _, first in parts)
    assert len(parts) == processes


def len_and_first(data: Dataset) -> tuple[int, str]:
    return len(data.samples), data.samples[0].name


def test_images_of_a_batch_are_flipped_each_in_its_own_way_all_eight_alike() -> None:
    image = torch.arange(9.0).reshape(1, 3, 3)
    found = augmenting.flipped(image.expand(4000, 1, 3, 3), torch.Generator().manual_seed(0))
    kinds, counts = torch.unique(found.flatten(1), dim=0, return_counts=True)
    every = {tuple(np.rot90(k, n).ravel()) for k in (image[0], image[0].T) for n in range(4)}
    assert {tuple(kind.tolist()) for kind in kinds} == every
    assert counts.min() > 400


def test_a_warped_image_is_that_of_scipy() -> None:
    rows, columns = np.mgrid[:33, :33]
    image = np.exp(-((rows - 20) ** 2 + (columns - 13) ** 2) / 30).astype(np.float32)
    generator = torch.Generator().manual_seed(4)
    state = generator.get_state()
    found = augmenting.warped(torch.from_numpy(image)[None, None], generator, zoom=1.3, shift=0.1)
    generator.set_state(state)
    angle = float(torch.rand(1, generator=generator)) * math.tau
    scale = 1.3 ** (2 * float(torch.rand(1, generator=generator)) - 1)
    move = 0.1 * 33 * (2 * torch.rand(1, 2, generator=generator)[0].numpy() - 1)
    sin, cos = math.sin(angle) / scale, math.cos(angle) / scale
    matrix = np.array([[cos, sin], [-sin, cos]])  # of y and x
    offset = 16 - matrix @ [16, 16] + move[::-1]
    expected = ndimage.affine_transform(image, matrix, offset, order=1, mode="reflect")
    assert np.abs(found[0, 0].numpy() - expected).max() < 1e-4


def test_light_changes_by_as_much_as_one_image_at_a_time() -> None:
    images = torch.full((500, 3, 2, 2), 100, dtype=torch.uint8)
    ours = augmenting.relit(images, torch.Generator().manual_seed(0))
    theirs = loops.relit(images, np.random.default_rng(0))
    for change in (torch.mean, torch.std, torch.amin, torch.amax):
        assert change(ours) == pytest.approx(float(change(theirs)), abs=0.01)
    assert len(np.unique(ours[0].numpy())) == 3
