"""The sound files that hostile ones are made from: each is what a command wrote."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
CHECKPOINT = ROOT / "examples/shapes/yolov6_pico.pth"
MODEL, TABLE, ENGINE, RECORDS = "model.onnx", "table.json", "model.engine", "records.jsonl"
QUANTIZED, PLAN, COCO, PHOTOS = "int8.onnx", "plan.json", "coco", "photos"
LAYERS = "layers.json"
COUNT = 3


def make(base: Path) -> None:
    """Write every sound file below `base`, in a fork: threads would not survive later forks."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _make(base)
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the sound files could not be made"


def _make(base: Path) -> None:

    from deploykit import cli

    def command(*words: object) -> None:
        with contextlib.suppress(SystemExit):
            cli.main([str(word) for word in words])

    out = os.dup(1)
    os.dup2(os.open(base / "log", os.O_CREAT | os.O_WRONLY), 1)
    source = f"shapes:count={COUNT},size=96"
    model = base / MODEL
    record = ("--record", base / RECORDS)
    command("export", CHECKPOINT, "--input-size", "64", "-o", model, *record)
    table = ("--calib-source", source, "--table", base / TABLE)
    command("quantize", model, *table, "-o", base / QUANTIZED, *record)
    snr = ("--metric", "snr", "--images", 2)
    command("sensitivity", model, *table, *snr, "-o", base / LAYERS, *record)
    command("build", base / QUANTIZED, "--backend", "onnxruntime", "-o", base / ENGINE, *record)
    command("eval", model, "--source", source, *record)
    command("bench", model, "--duration", "0.1", "--warmup", "0", *record)
    (base / PLAN).write_text(json.dumps({"layers": {}, "reasons": {}}))
    _images(base, source)
    os.dup2(out, 1)


def _images(base: Path, source: str) -> None:
    from PIL import Image

    from deploykit.data import sources

    photos = base / COCO / PHOTOS
    photos.mkdir(parents=True)
    data = sources.dataset(source)
    entries: list[Any] = []
    annotations: list[Any] = []
    for sample in data.samples:
        assert sample.truth is not None
        truth: Any = sample.truth()
        height, width = truth.size
        name = f"{sample.name}.png"
        entries.append({"id": truth.image_id, "file_name": name, "height": height, "width": width})
        annotations += [{**each, "image_id": truth.image_id} for each in truth.annotations]
        Image.fromarray(sample.read()).save(photos / name)
    categories = [{"id": number, "name": name} for number, name in data.categories.items()]
    coco = {"images": entries, "annotations": annotations, "categories": categories}
    (base / COCO / "truth.json").write_text(json.dumps(coco))
