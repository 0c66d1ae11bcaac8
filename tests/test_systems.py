"""The benchmark of all systems: its weights, its table, and one small system along the road."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import nn

from deploykit.recipes.recipe import RECIPES

ROOT = Path(__file__).parent.parent


class Small(nn.Module):
    """A convolution, a norm and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> Any:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def test_what_passes_a_fitted_network_has_the_spread_that_is_asked_for() -> None:
    import systems_nets as nets
    from systems_list import Spread

    made, images = Small(), torch.rand(16, 3, 12, 12) * 40
    nets.randomise(made)
    with torch.no_grad(), nets.Fitting(made.eval(), {"head": Spread(3.0, -1.0)}):
        made(images)
    with torch.no_grad():
        hidden, scores = made.conv(images), made(images)
        mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3)).mean().expand(8)
        norm = nn.functional.batch_norm(hidden, mean, variance)
        expected = norm * made.norm.weight[:, None, None] + made.norm.bias[:, None, None]
        assert torch.allclose(made.norm(hidden), expected, atol=1e-3)
    assert float(hidden.square().mean()) == pytest.approx(1, abs=1e-4)
    assert torch.allclose(scores.mean(0), torch.full((5,), -1.0), atol=1e-4)
    assert float((scores + 1).square().mean().sqrt()) == pytest.approx(3, abs=1e-3)


def test_the_norm_that_ends_a_residual_branch_is_small_whatever_its_name() -> None:
    import systems_nets as nets
    from torchvision.models.resnet import BasicBlock, Bottleneck

    from deploykit.networks.detectors.keras_rcnn import Block

    made = nn.Sequential(
        BasicBlock(256, 256), Bottleneck(256, 64), Block(256, (64, 256), 1, first=False)
    )
    nets.randomise(made)
    norms = {
        name: float(module.weight.detach().log().mean().exp())
        for name, module in made.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    ends = {"0.bn2", "1.bn3", "2.branch2c.1"}
    assert len(norms) == 8
    for name, size in norms.items():
        assert size == pytest.approx(nets.BRANCH if name in ends else 1.0, rel=0.1), name


class Asking(Small):
    """A network that a part of a parameter passes, which autograd knows no origin of."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = nn.Parameter(torch.rand(4, 8))

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images), self.head(self.asked[:2])


def test_the_work_of_a_network_that_asks_with_a_part_of_a_parameter_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    import systems

    import deploykit
    from deploykit.networks import loading

    made = SimpleNamespace(module=Asking())
    monkeypatch.setattr(loading, "load_network", lambda *_: made)
    found = systems.trained(
        Path(), deploykit.ExportOptions(), {"images": np.zeros((1, 3, 12, 12), np.float32)}
    )
    assert found["work"] == 8 * 27 * 100 + 8 * 5 + 2 * 8 * 5


def test_photographs_that_are_compared_show_nothing_that_was_calibrated_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import systems_nets as nets
    from skimage import data
    from systems_list import COMPARED

    half = np.repeat(np.array([0, 255], np.uint8), 200)
    monkeypatch.setattr(nets, "PHOTOGRAPHS", ("astronaut",))
    monkeypatch.setattr(data, "astronaut", lambda: np.tile(half[:, None], (300, 1, 3)))
    nets.photographs(tmp_path)
    for part, level in (("calibrated", 0), ("compared", 255)):
        files = sorted((tmp_path / part).glob("*.png"))
        assert len(files) == (nets.CALIBRATED if level == 0 else COMPARED)
        assert all((np.asarray(Image.open(file)) == level).all() for file in files)


def record(**changed: Any) -> dict[str, Any]:
    found = {
        "parameters": 27_500_000,
        "macs": 4_490_000_000,
        "proof": 1.2e-6,
        "engines": {
            "86": {"seconds": 4.62, "shares": {"int8": 0.984, "fp16": 0.016}},
            "75": {"seconds": 3.71, "shares": {"fp16": 1.0}},
        },
        "agreement": {"top1": 0.8125, "top5": 1.0},
        "primary": "top1",
        "snr": {"logits": 25.04},
        "cpu": {"seconds": {"ours": [0.25, 0.2, 0.9], "plain": [0.3, 0.2, 0.36]}},
        "branches": [],
        "commit": "abc",
    }
    return {**found, **changed}


def test_a_row_says_what_was_read_back_and_how_often_as_fast_it_is() -> None:
    import systems_table

    cells = [cell.strip() for cell in systems_table.row("Swin", record()).strip("|").split("|")]
    assert dict(zip(systems_table.COLUMNS, cells, strict=True)) == {
        "system": "Swin",
        "network, input": "`tiny`, 224x224, 27.5 M, 4.49 GMAC",
        "checkpoints of": "official, timm, torchvision",
        "FP32 proof": "1.2e-06",
        "INT8 share": "98.4%",
        "INT8 against FP32": "top1 0.812",
        "signal to noise, dB": "logits 25.0",
        "build, s": "4.6 / 3.7",
        "CPU FPS": "4.0",
        "plain": "1.00 x",
        "any batch": "",
    }


def test_what_the_runtime_makes_the_same_graph_of_is_called_so() -> None:
    import systems_table

    same = record()
    same["cpu"] = {**same["cpu"], "same": ["plain"]}
    assert "| 1.00 x (same) |  |" in systems_table.row("Swin", same)
    same["cpu"]["seconds"]["plain"] = [0.5 * each for each in same["cpu"]["seconds"]["ours"]]
    slow = next(line for line in systems_table.table({"Swin": same}) if "for one image" in line)
    assert slow.endswith(": none.")


def added(path: Path, name: str, *, twice: bool = False, number: float = 1.0) -> Path:
    """Write a graph of two layers, the sum of the second and its input or its own double."""
    weight = numpy_helper.from_array(np.full((4, 4, 1, 1), number, np.float32), f"{name}.w")
    ends = [helper.make_tensor_value_info(f"{name}.{end}", 1, (1, 4, 5, 5)) for end in "xz"]
    nodes = [
        helper.make_node("Conv", [f"{name}.x", f"{name}.w"], [f"{name}.a"]),
        helper.make_node("Sigmoid", [f"{name}.a"], [f"{name}.y"]),
        helper.make_node("Add", [f"{name}.y", f"{name}.{'y' if twice else 'a'}"], [f"{name}.z"]),
    ]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], [weight])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_graphs_are_the_same_whatever_they_call_things_and_not_if_joined_otherwise(
    tmp_path: Path,
) -> None:
    from systems_graphs import alike

    first = added(tmp_path / "first.onnx", "first")
    assert alike(first, added(tmp_path / "second.onnx", "second", number=2.0))
    assert not alike(first, added(tmp_path / "third.onnx", "third", twice=True))


def test_what_int8_costs_is_said_by_the_records_of_the_example() -> None:
    import systems_table

    made = [
        ("a.onnx", "fp", {"a.pth": "weights"}, {"fp32": 1.0}),
        ("a.fp16.onnx", "half", {"a.onnx": "fp"}, {"fp16": 1.0}),
        ("a.int8.onnx", "int", {"a.onnx": "fp"}, {"int8": 0.9}),
        ("a.minmax.onnx", "other", {"a.onnx": "fp"}, {"int8": 0.9}),
        ("a.onnx", "fp of now", {"a.pth": "weights"}, {"fp32": 1.0}),
        ("a.int8.onnx", "int of now", {"a.onnx": "fp of now"}, {"int8": 0.9}),
    ]
    keys = ("path", "sha256", "parents", "precision")
    lines: list[dict[str, Any]] = [
        {"kind": "artifact", **dict(zip(keys, each, strict=True))} for each in made
    ]
    values = {"weights": 0.9, "fp": 0.75, "int": 0.5, "other": 0.1}
    for model, value in (*values.items(), ("fp of now", 0.875), ("int of now", 0.625)):
        metrics = {"ap": value, "mask_ap": value / 2}
        lines.append({"kind": "accuracy", "model_sha256": model, "metrics": metrics, "images": 300})
    assert systems_table._judged(lines, "a.pth", "ap") == [(0.875, 300), (0.625, 300)]
    before = [each for each in lines if "now" not in (each.get("sha256") or each["model_sha256"])]
    assert systems_table._judged(before, "a.pth", "mask_ap") == [(0.375, 300), (0.25, 300)]


def test_every_trained_example_says_what_int8_costs() -> None:
    import systems_list
    import systems_table

    trained = {name: each for name, each in systems_list.SYSTEMS.items() if each.example}
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/train.json")}
    assert {Path(each.example).parent.name for each in trained.values()} == folders
    metrics = {"classification": "top1", "semantic_segmentation": "miou", "detection": "ap"}
    for name, system in trained.items():
        metric = metrics.get(str(RECIPES.load(system.recipe).task), "mask_ap")
        found = systems_table.costs(system, metric)
        assert found is not None, name
        assert abs(found[0]) < 0.01, name
        assert found[1] >= 300, name


def test_a_row_says_where_there_was_nothing_to_agree_on() -> None:
    import systems_table

    nothing = record(agreement={}, snr={}, primary="mask_ap")
    assert "| FP32 finds nothing; costs +0.0002 (2,000) |  |" in systems_table.row(
        "Mask R-CNN, trained", nothing
    )


def test_what_misses_is_named_below_the_table() -> None:
    import systems_table

    alone = {"seconds": {"ours": [0.2]}, "none": "no op"}
    refused = {"failed": "it has\na Loop"}
    whole = record()["engines"]
    low = {"86": {"seconds": 1.0, "shares": {"int8": 0.9}}, "75": refused}
    slow = {"seconds": {"ours": [0.2], "plain": [0.19], "dynamic": [0.3]}}
    twice = {"seconds": {"ours": [0.2, 0.4], "beside": [0.1, 0.2]}}
    same = {"seconds": {"ours": [0.11, 0.2], "beside": [0.1, 0.2]}}
    text = "\n".join(
        systems_table.table(
            {
                "Swin": record(engines=low, cpu=slow),  # a transformer: 85 % are enough
                "HRNet": record(engines={**whole, "86": low["86"]}, branches=["If"]),
                "PointRend": record(cpu=twice, macs=2_500, work=3_000),
                "Mask Scoring R-CNN": record(cpu=same, macs=2_200),
                "Mask R-CNN": record(cpu=alone, macs=2_000),
                "DETR": {"failed": "OptionError: a | b", "commit": "abd"},
                "MPViT": {k: v for k, v in record().items() if k != "branches"},
            }
        )
    )
    assert "NonZero in the main graph: HRNet; not looked at: MPViT." in text
    assert "of the multiply-accumulates: HRNet." in text
    assert "the plain exporter's graph for one image: Swin." in text
    assert "the plain exporter's graph for any number: none." in text
    assert "No engine: Swin for SM75." in text
    assert "the end of the road: DETR." in text
    assert "PointRend takes 2.00 x Mask R-CNN's time" in text
    assert "with 1.50 x its work: more than the 1.65 x" in text
    assert "with 1.10 x its work: at most the 1.25 x" in text
    assert "Commits: abc, abd." in text
    assert "OptionError: a / b |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_page_shows_the_records() -> None:
    import systems
    import systems_table

    rows = "\n".join(systems_table.table(systems_table.records(systems.RESULTS)))
    assert rows in (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")


def test_a_file_is_opened_first_in_half_of_the_rounds_and_never_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import systems_speed as speed

    opened: list[str] = []
    ran: list[str] = []

    def ready(path: Path, _: object) -> tuple[str, None]:
        opened.append(path.name)
        return path.name, None

    def taken(name: str, _: None) -> float:
        ran.append(name)
        return 1.0

    monkeypatch.setattr(speed, "_ready", ready)
    monkeypatch.setattr(speed, "taken", taken)
    files = ("ours", "plain", "dynamic")
    found = speed.in_turns({name: (Path(name), {}) for name in files})
    assert {name: len(each) for name, each in found.items()} == dict.fromkeys(files, 40)
    rounds = [opened[start : start + 4] for start in range(0, len(opened), 4)]
    assert rounds == [["ours", *files], ["dynamic", *files[::-1]]] * 2
    assert ran[:7] == ["ours", *files[::-1], *files]


def test_a_small_system_goes_along_the_whole_road(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="builds engines: pip install tensorrt-rtx-cu13")
    import systems
    import systems_nets as nets
    import systems_speed

    for name, count in (("CALIBRATED", 8), ("COMPARED", 2), ("FITTED", 2)):
        monkeypatch.setattr(nets, name, count)
    monkeypatch.setattr(systems_speed, "TURNS", 1)
    monkeypatch.setattr(systems_speed, "SHORTEST", 1e-6)
    nets.photographs(tmp_path)
    found = systems.measured("RepVGG, trained", tmp_path)
    assert found["proof"] < 1e-4
    assert found["engines"]["86"]["shares"]["int8"] > 0.95
    assert found["engines"]["75"]["shares"] == {"fp16": 1.0}
    assert set(found["cpu"]["seconds"]) == {"ours", "plain", "dynamic"}
    assert found["images"] == 2
    assert found["branches"] == []
    assert found["work"] > found["macs"]  # the branches of its blocks are one convolution each
    assert found["snr"]["logits"] > 15
    anew = systems.again("RepVGG, trained", {**found, "cpu": {}, "commit": "abc"}, tmp_path)
    assert set(anew["cpu"]["seconds"]) == {"ours", "plain", "dynamic"}
    assert anew["commit"] == "abc"
    assert anew["snr"] == found["snr"]


@pytest.mark.parametrize(("how", "expected"), [("none", True), ("tanh", False)])
def test_an_exact_gelu_is_the_same_by_either_of_the_runtimes_ops(
    tmp_path: Path, how: str, *, expected: bool
) -> None:
    from systems_graphs import alike

    ends = [helper.make_tensor_value_info(name, 1, (1, 4, 5, 5)) for name in "xy"]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    nodes = [
        helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"),
        helper.make_node("Gelu", ["x"], ["y"], approximate=how),
    ]
    paths = [tmp_path / "own.onnx", tmp_path / "standard.onnx"]
    for path, node in zip(paths, nodes, strict=True):
        graph = helper.make_graph([node], "g", ends[:1], ends[1:])
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    assert alike(*paths) is expected
