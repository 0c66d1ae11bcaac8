"""Seconds per image of Mask R-CNN on a CPU: ours in ONNX Runtime beside torchvision's two ways.

    python benchmarks/two_stage.py                         # ResNet-50-FPN, 800x1344
    python benchmarks/two_stage.py --size 480x640 --rounds 5
    python benchmarks/two_stage.py --detections 20 --detections 100

torchvision's `maskrcnn_resnet50_fpn` with random weights, its norms fitted to the photograph and
its class scores sharpened until it finds about as many objects as asked for, runs as PyTorch
eager, as the ONNX file that torchvision's own TorchScript export gives, and as the ONNX file of
`deploykit export`. Each takes the same photograph, uint8[H, W, 3], to boxes, scores, classes and
bool[N, H, W] masks at the photograph's size. They take turns, round by round, in one process
with the same number of threads; the medians are compared. The results file gets one line per
way; only lines with the same `run` may be compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Pixels

    Way = Callable[[Pixels], "Result"]

RESULTS = Path(__file__).parent / "results" / "two_stage.jsonl"
SEED = 0
EAGER, THEIRS, OURS = "torch eager", "torchvision's ONNX", "deploykit's ONNX"
TARGET = 1.2
"""Seconds of the faster of the others over ours."""
ALIKE = 0.95
"""Share of the objects that every way must find alike, else nothing is measured."""
SAFE = 0.055
"""Score above which an object must be found: the threshold is 0.05."""


@dataclass(frozen=True)
class Result:
    """The objects of one image."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: NDArray[np.bool_]


# --- the network ------------------------------------------------------------------------------


def network(image: Pixels, detections: int) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return maskrcnn_resnet50_fpn that finds about `detections` objects in the photograph."""
    import torch  # noqa: PLC0415 - `--help` is instant
    from torchvision.models.detection import maskrcnn_resnet50_fpn  # noqa: PLC0415 - as above

    torch.manual_seed(SEED)
    height, width = image.shape[:2]
    sides = {"min_size": min(height, width), "max_size": max(height, width)}
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sides)
    pixels = tensor(image)
    with torch.no_grad():
        fit_norms(model, pixels)
        sharpen(model.eval(), pixels, detections)
    return model.eval()


def tensor(image: Pixels) -> Any:  # noqa: ANN401 - a torch tensor, imported late
    """Return float32[3, H, W], 0 to 1."""
    import torch  # noqa: PLC0415 - `--help` is instant

    return torch.from_numpy(image.transpose(2, 0, 1) / np.float32(255))


def fit_norms(model: Any, pixels: Any) -> None:  # noqa: ANN401 - torchvision's and torch's
    """Give every batch norm the statistics of this photograph: random weights then stay sane."""
    norms = [m for m in model.modules() if hasattr(m, "running_var")]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model.backbone(model.transform([pixels])[0].tensors)
    for norm in norms:
        norm.eval()


def sharpen(model: Any, pixels: Any, wanted: int) -> None:  # noqa: ANN401 - as above
    """Scale the class logits and find the background's bias that leaves `wanted` objects."""
    heads, size = model.roi_heads, pixels.shape[-2:]
    images, _ = model.transform([pixels])
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, [size]))
    predictor = heads.box_predictor
    logits, deltas = predictor(pooled)
    predictor.cls_score.weight *= 2.0 / logits.std(0).mean()
    predictor.cls_score.bias.zero_()
    predictor.bbox_pred.weight *= 0.5 / deltas.std()
    logits, deltas = predictor(pooled)
    low, high = -20.0, 40.0
    for _ in range(20):
        bias = (low + high) / 2
        moved = logits.clone()
        moved[:, 0] += bias
        found = heads.postprocess_detections(moved, deltas, proposals, [size])[0][0]
        low, high = (bias, high) if len(found) > wanted else (low, bias)
    predictor.cls_score.bias[0] = low


# --- the ways ---------------------------------------------------------------------------------


def eager(model: Any) -> Way:  # noqa: ANN401 - torchvision ships no types
    """Return torchvision's model as it runs in PyTorch."""
    import torch  # noqa: PLC0415 - `--help` is instant

    def run(image: Pixels) -> Result:
        with torch.inference_mode():
            found = model([tensor(image)])[0]
        arrays = [found[name].numpy() for name in ("boxes", "scores", "labels", "masks")]
        return Result(arrays[0], arrays[1], arrays[2] - 1, arrays[3][:, 0] > 0.5)

    return run


def theirs(model: Any, image: Pixels, folder: Path, threads: int) -> Way:  # noqa: ANN401 - as above
    """Return torchvision's own ONNX export in ONNX Runtime."""
    import warnings  # noqa: PLC0415 - for the TorchScript exporter's many

    import torch  # noqa: PLC0415 - `--help` is instant

    path = folder / "torchvision.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            ([tensor(image)],),
            path,
            opset_version=17,
            dynamo=False,
            input_names=["image"],
            output_names=["boxes", "labels", "scores", "masks"],
        )
    session = onnx_session(path, threads)

    def run(image: Pixels) -> Result:
        feed = np.ascontiguousarray(image.transpose(2, 0, 1) / np.float32(255))
        boxes, labels, scores, masks = session.run(None, {"image": feed})
        return Result(boxes, scores, labels - 1, masks[:, 0] > 0.5)

    return run


def ours(model: Any, image: Pixels, folder: Path, threads: int) -> Way:  # noqa: ANN401 - as above
    """Return what `deploykit export` makes of the model's weights, in ONNX Runtime."""
    import torch  # noqa: PLC0415 - `--help` is instant

    from deploykit.files import onnxfile  # noqa: PLC0415 - as above
    from deploykit.pipeline import exporting  # noqa: PLC0415 - as above
    from deploykit.recipes import metadata  # noqa: PLC0415 - as above
    from deploykit.tasks import decoding, masks  # noqa: PLC0415 - as above

    checkpoint, path = folder / "mask_rcnn.pth", folder / "deploykit.onnx"
    torch.save(model.state_dict(), checkpoint)
    size = (image.shape[0], image.shape[1])
    exporting.export(checkpoint, path, exporting.ExportOptions("mask_rcnn", input_size=size))
    card = metadata.read(onnxfile.read_model(path).metadata_props)
    assert card is not None, "deploykit export writes one"
    session = onnx_session(path, threads)
    names = [output.name for output in session.get_outputs()]

    def run(image: Pixels) -> Result:
        pixels, place = card.preprocess(image)
        values = session.run(None, {"images": pixels[None]})
        found = decoding.padded(dict(zip(names, values, strict=True)), [place])[0]
        assert found.masks is not None, "the recipe has masks"
        frames = found.boxes if found.frames is None else found.frames
        pasted = masks.paste(found.masks, frames, *image.shape[:2])
        return Result(found.boxes, found.scores, found.classes, pasted)

    return run


def onnx_session(path: Path, threads: int) -> Any:  # noqa: ANN401 - the package ships no types
    """Return an ONNX Runtime session as all ways use it."""
    import onnxruntime as ort  # noqa: PLC0415 - `--help` is instant

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# --- measuring --------------------------------------------------------------------------------


def agreement(found: Result, truth: Result) -> float:
    """Return the share of the objects of `truth` and of `found`, from SAFE on, with a partner.

    Partners have the same class, boxes within half a pixel and scores within 0.001.
    """
    if not len(found.boxes) or not len(truth.boxes):
        return float(len(found.boxes) == len(truth.boxes))
    sure, wanted = found.scores >= SAFE, truth.scores >= SAFE
    near = np.abs(found.boxes[:, None] - truth.boxes).max(-1) <= 0.5
    near &= np.abs(found.scores[:, None] - truth.scores) <= 1e-3
    near &= found.classes[:, None] == truth.classes
    return float(min(near.any(0)[wanted].mean(), near.any(1)[sure].mean()))


def rounds(ways: Mapping[str, Way], image: Pixels, count: int) -> dict[str, list[float]]:
    """Return the seconds of every way, measured in turns; one round before is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(count + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way(image)
            taken = time.perf_counter() - started
            if turn:
                seconds[name].append(taken)
        if turn:
            print(f"round {turn}/{count}", file=sys.stderr, flush=True)
    return seconds


def table(seconds: Mapping[str, list[float]]) -> str:
    """Return the medians, and how many times as fast as each other way ours is."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lines = [f"{'':22}{'median s':>9}{'fastest s':>11}{'ours is':>9}"]
    for name, median in medians.items():
        faster = f"{median / medians[OURS]:.2f} x"
        lines.append(f"{name:22}{median:9.3f}{min(seconds[name]):11.3f}{faster:>9}")
    ratio = min(median for name, median in medians.items() if name != OURS) / medians[OURS]
    verdict = "reached" if ratio >= TARGET else "missed"
    return "\n".join([*lines, f"against the faster: {ratio:.2f} x; {TARGET} x {verdict}"])


def photograph(size: tuple[int, int]) -> Pixels:
    """Return a photograph that comes with scikit-image, H x W."""
    from PIL import Image  # noqa: PLC0415 - `--help` is instant
    from skimage import data  # noqa: PLC0415 - likewise

    astronaut: Any = data.astronaut
    return np.asarray(Image.fromarray(astronaut()).resize((size[1], size[0])))


def measure(options: argparse.Namespace, detections: int) -> None:
    """Measure the three ways once, print the table and append the records."""
    import torch  # noqa: PLC0415 - `--help` is instant

    from deploykit.measuring import conditions, environment, records  # noqa: PLC0415 - likewise
    from deploykit.values import BenchRecord  # noqa: PLC0415 - likewise

    torch.set_num_threads(options.threads)
    image = photograph(options.size)
    model = network(image, detections)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        ways = {
            EAGER: eager(model),
            THEIRS: theirs(model, image, folder, options.threads),
            OURS: ours(model, image, folder, options.threads),
        }
        truth = ways[EAGER](image)
        shares = {name: agreement(way(image), truth) for name, way in ways.items()}
        print(f"\n{len(truth.boxes)} objects; found alike: {shares}")
        if min(shares.values()) < ALIKE:
            sys.exit("the ways do not find the same objects: nothing to compare")
        before = environment.describe()
        seconds = rounds(ways, image, options.rounds)
    print(table(seconds))
    protocol = {
        "benchmark": "two_stage",
        "run": uuid.uuid4().hex,
        "network": "torchvision maskrcnn_resnet50_fpn, random weights",
        "size": list(options.size),
        "objects": len(truth.boxes),
        "threads": options.threads,
        "rounds": options.rounds,
    }
    for name, values in seconds.items():
        record = BenchRecord(
            model="maskrcnn_resnet50_fpn",
            model_sha256="",
            backend=name,
            scope="end-to-end",
            batch_size=1,
            seconds=tuple(values),
            protocol={**protocol, "found_alike": shares[name]},
            environment={"before": before, "after": environment.describe()},
        )
        records.append(options.output, conditions.with_warnings(record))


def size(text: str) -> tuple[int, int]:
    """Return H, W of `HxW`. Raises: argparse.ArgumentTypeError."""
    height, _, width = text.partition("x")
    sides = [int(side) for side in (height, width) if side.isdigit()]
    if len(sides) != 2 or any(side % 32 or not side for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HxW, multiples of 32, as 800x1344")
    return sides[0], sides[1]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=size, default=(800, 1344), help="default: 800x1344")
    parser.add_argument("--detections", type=int, action="append", help="default: 30")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the models here")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    for detections in options.detections or [30]:
        measure(options, detections)


if __name__ == "__main__":
    main()
