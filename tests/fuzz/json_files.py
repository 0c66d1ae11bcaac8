"""Hostile tables, plans, sensitivities, records, COCO files and sidecars."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from . import mutants, sound
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Words = Callable[[Path, Path], list[str]]

_EACH = 28
"""Files of each kind with one wrong value."""


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case, made from the sound files in `base`."""
    kinds: dict[str, tuple[Any, str, Words]] = {
        "table": (_read(base / sound.TABLE), "table.json", _quantize("--table")),
        "plan": (_plan(base), "plan.json", _quantize("--plan")),
        "sensitivities": (_read(base / sound.LAYERS), "layers.json", _planned),
        "record": (_record(base), "r.jsonl", lambda f, _: ["report", str(f), "-o", "r.html"]),
        "coco": (_read(base / sound.COCO / "truth.json"), "truth.json", _eval),
        "panoptic": (_panoptic(base), "segments.json", _eval_segments),
        "sidecar": (_read(base / (sound.ENGINE + ".json")), "e.engine.json", _engine),
    }
    for kind, (value, name, words) in kinds.items():
        text = json.dumps(value).encode()
        for what, content in mutants.texts(text):
            yield _case(kind, what, name, content, words)
        for number, (what, content) in enumerate(
            mutants.values(value, seed=seed + len(kind), count=_EACH)
        ):
            yield _case(kind, f"{number} {what}", name, content, words)
    for kind, (_, name, words) in kinds.items():
        for other, (value, _, _) in kinds.items():
            if other != kind:
                yield _case(kind, f"a {other}", name, json.dumps(value).encode(), words)


def _case(kind: str, what: str, name: str, content: bytes, words: Words) -> Case:
    return Case(f"{kind}: {what}", partial(_made, name=name, content=content, words=words))


def _made(folder: Path, base: Path, *, name: str, content: bytes, words: Words) -> list[str]:
    (folder / name).write_bytes(content)
    return words(folder / name, base)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def _plan(base: Path) -> Any:
    names = list(_read(base / sound.TABLE)["ranges"])[:2]
    layers = dict.fromkeys(names, "fp16")
    return {"layers": layers, "reasons": dict.fromkeys(names, "scores"), "default": "int8"}


def _record(base: Path) -> Any:
    lines = (base / sound.RECORDS).read_text().splitlines()
    return json.loads(lines[-1])


def _quantize(option: str) -> Words:
    def words(path: Path, base: Path) -> list[str]:
        images = ["--calib-source", f"shapes:count={sound.COUNT},size=96"]
        return ["quantize", str(base / sound.MODEL), option, str(path), *images, "-o", "out.onnx"]

    return words


def _planned(path: Path, base: Path) -> list[str]:
    words = ["plan", str(base / sound.MODEL), "--sensitivities", str(path)]
    return [*words, "--keep-float", "2", "-o", "plan.json"]


def _eval(path: Path, base: Path) -> list[str]:
    photos = base / sound.COCO / sound.PHOTOS
    source = f"coco:{photos},annotations={path}"
    return ["eval", str(base / sound.MODEL), "--source", source, "--limit", "2"]


def _panoptic(base: Path) -> Any:
    truth = _read(base / sound.COCO / "truth.json")
    segments = [{"id": 1, "category_id": 1, "iscrowd": 0}]
    return {
        "images": truth["images"],
        "annotations": [
            {"image_id": e["id"], "file_name": e["file_name"], "segments_info": segments}
            for e in truth["images"]
        ],
        "categories": [{**each, "isthing": 1} for each in truth["categories"]],
    }


def _eval_segments(path: Path, base: Path) -> list[str]:
    photos = base / sound.COCO / sound.PHOTOS
    source = f"coco:{photos},annotations={path},truth=panoptic,maps={photos}"
    return ["eval", str(base / sound.MODEL), "--source", source, "--limit", "2"]


def _engine(path: Path, base: Path) -> list[str]:
    engine = path.with_suffix("")
    engine.symlink_to(base / sound.ENGINE)
    return ["inspect", str(engine)]
