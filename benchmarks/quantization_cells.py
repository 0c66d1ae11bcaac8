"""Nets, images and cells of the table that `quantization.py` fills, and how one is judged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

import deploykit
from deploykit.data import feeding, samples, sources
from deploykit.pipeline.opening import open_model
from deploykit.tasks import evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.backends import Arrays
    from deploykit.data.samples import Batch

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
FOLDS = 20
CALIBRATION, HELD_OUT = 256, 2000
DETECTORS = ("repvgg", "repopt", "qarepvgg")
"""Those that are quantised with fewer bits too, and trained by ModelOpt."""
NETS = {
    "repvgg": "shapes/yolov6_pico.pth",
    "repopt": "shapes/yolov6_pico_repopt.pth",
    "qarepvgg": "shapes/yolov6_pico_qa.pth",
    "x100": "shapes/yolov6_pico.pth",
    "x30": "shapes/yolov6_pico.pth",
    "masks": "shapes_masks/mask_rcnn_light.pth",
    "classes": "shapes_classes/repvgg_pico.pth",
    "maps": "shapes_maps/fcn_light.pth",
}
SKEWED = {"x100": (100.0, "ERBlock_4"), "x30": (30.0, "")}
"""Factor, and what the names of the layers hold."""


def source(net: str, split: str, count: int, seed: int) -> str:
    """Return the images of a net: those that its example was trained on, or held out."""
    truth = {"classes": "class,size=64", "maps": "map"}.get(net)
    kind = f",truth={truth}" if truth else ""
    return f"shapes:split={split},seed={seed},count={count}{kind}"


class Cell:
    """One number of the table, and the files that lead to it."""

    threads = 2
    device = "cpu"
    learn = False
    """Train, and judge nothing but what training chooses by."""

    def __init__(self, folder: Path, net: str, method: str, bits: int, images: int) -> None:
        """Name the files."""
        self.net, self.method, self.bits, self.images = net, method, bits, images
        self.model = folder / f"{net}.onnx"
        self.ranges = folder / f"{net}.table.json"
        self.made = folder / f"{net}.{method}.onnx"
        self.folder = folder

    @property
    def calibration(self) -> str:
        """Return the images to calibrate on."""
        return source(self.net, "train", CALIBRATION, 0)

    def how(self, **given: Any) -> deploykit.QuantizeOptions:  # noqa: ANN401 - its fields
        """Return how the net is quantised."""
        options = deploykit.CalibrationOptions(given.pop("observer", "mse"))
        return deploykit.QuantizeOptions(source=self.calibration, calibration=options, **given)


def network(given: Cell) -> None:
    """Export a net, skewed where its name says so."""
    plain = given.folder / f"{NETS[given.net].replace('/', '.')}.onnx"
    if not plain.exists():
        variant = "pico_qa" if given.net == "qarepvgg" else None
        how = deploykit.ExportOptions(variant=variant)
        deploykit.export(EXAMPLES / NETS[given.net], plain, how)
    model = onnx.load(plain)
    if given.net in SKEWED:
        spec = importlib.util.spec_from_file_location("skewing", ROOT / "tests" / "skewing.py")
        assert spec is not None
        assert spec.loader is not None
        skewing = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(skewing)
        factor, within = SKEWED[given.net]
        skewing.skewed(model, skewing.one(factor), within=within)
    onnx.save(model, given.model)


def judged(run: Any, given: Cell, seed: int = 11) -> dict[str, Any]:  # noqa: ANN401 - a runner
    """Return the task's number over all held-out images, and on each fold of them."""
    model = open_model(given.model)
    card = model.contract()
    contract = evaluation.Contract(card.preprocess, card.class_names, model.task())
    data = sources.dataset(source(given.net, "val", given.images, seed))
    inputs = model.session.inputs
    count = samples.batch_size(4, feeding.batch(inputs[0]), contract.preprocess.size)

    def forward(batch: Batch) -> Mapping[str, Any]:
        outputs = run(feeding.feeds(inputs, batch.images, batch.geometries))
        return feeding.unfilled(outputs, inputs[0], len(batch.names))

    found = evaluation.evaluate(forward, data, contract, batch_size=count, parts=FOLDS)
    return {
        "primary": found.scores.primary,
        "value": found.scores.value,
        "folds": [each.value for each in found.parts],
    }


def by_torch(network: Any, device: str = "cpu") -> Any:  # noqa: ANN401 - a module
    """Return what runs a module as a session runs a graph."""
    import torch  # noqa: PLC0415

    network.to(device)

    def run(feeds: Arrays) -> Mapping[str, Any]:
        with torch.inference_mode():
            fed = {name: torch.from_numpy(value).to(device) for name, value in feeds.items()}
            found = network(fed)
        return {name: value.cpu().numpy() for name, value in found.items()}

    return run
