"""The verb predict: what models find in images, as pictures and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from deploykit import tasks
from deploykit.data import images, sources
from deploykit.data.sources import SOURCES, Dataset, Sample
from deploykit.errors import DataError
from deploykit.files import artifacts, paths
from deploykit.pipeline import handing_in, intake, teaching
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.predictor import PredictOptions, Predictor, load
from deploykit.tasks import sheets
from deploykit.tasks.task import Result
from deploykit.values import SCHEMA_VERSION, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deploykit.data.preprocess import Pixels
    from deploykit.pipeline.made import StrPath
    from deploykit.tasks import AnyTask
    from deploykit.values import Json, Progress

    _Write = Callable[[object, tuple[int, int], Sequence[str]], None]


@dataclass(frozen=True)
class Prediction:
    """What was found in one image, and where it was written."""

    image: str
    said: str
    """In a few words."""
    picture: Path
    data: Path
    """The same as JSON."""
    differs: bool | None = None
    """Whether the other model finds something else; None: there is none, or it cannot be said."""


def predict(  # noqa: PLR0913 - two models' worth of nouns and the verbs' common switches
    path: StrPath,
    inputs: Sequence[StrPath],
    output: StrPath,
    options: PredictOptions | None = None,
    *,
    task: str | AnyTask | None = None,
    progress: Progress = silent,
) -> tuple[Prediction, ...]:
    """Return what a model finds in images; a picture and a JSON file of each go to a folder.

    inputs: Image files, folders of them, or data sources such as `shapes:count=4`.

    Raises: InputError, OutputError, BackendError; OptionError for models of two tasks.
    """
    wanted, folder = options or PredictOptions(), Path(output)
    sets = [_dataset(given) for given in inputs]
    chosen = [sample for data in sets for sample in data.samples]
    writers = [writer for data in sets for writer in _writers(data, wanted.predictions)]
    places = _places(chosen, folder)
    against = path_or_none(wanted.against)
    reads = {str(given): Path(given) for given in inputs if Path(given).is_file()}
    written = {str(place): place for pair in places for place in pair}
    paths.check(reads={"the model": Path(path), "--against": against, **reads}, writes=written)
    said = intake.shared(wanted.about, Path(path), *filter(None, [against]))
    models = [load(path, replace(wanted, about=said[0]), task=task)]
    if against is not None:
        models.append(load(against, replace(wanted, backend=None, about=said[1]), task=task))
        teaching.check_alike([each.model for each in models], [each.task for each in models])
    rows = zip(chosen, places, writers, strict=True)
    return tuple(_predicted(models, *row) for row in progress(rows, "images", len(chosen)))


def _writers(data: Dataset, folder: StrPath | None) -> list[_Write | None]:
    """Return, for each image, what writes a result as the makers of the data set take it.

    Raises: OptionError where there is a folder for them and nobody takes them; OutputError.
    """
    if folder is None:
        return [None] * len(data.samples)
    write = handing_in.benchmark(data).write
    return [partial(write, artifacts.made(Path(folder)), sample.name) for sample in data.samples]


def _dataset(given: StrPath) -> Dataset:
    """Return the images that a word of the user's names. Raises: DataError."""
    path = Path(given)
    if path.is_dir():
        return sources.dataset(f"folder:{given}")
    name, colon, _ = str(given).partition(":")
    if colon and not path.exists() and (name in SOURCES.shipped() or name.endswith(".py")):
        return sources.dataset(str(given))
    if not path.is_file():
        raise DataError(
            f"no such image: {given}",
            expected="image files, folders of them, or SOURCE:LOCATION",
        )
    return Dataset(path.name, [Sample(path.name, partial(images.decode, path))])


def _places(chosen: Sequence[Sample], folder: Path) -> list[tuple[Path, Path]]:
    """Return the picture and the JSON file of each image: no two are one. Raises: OutputError."""
    artifacts.made(folder)
    taken: dict[str, int] = {}
    found = []
    for sample in chosen:
        name = Path(sample.name).stem
        taken[name] = taken.get(name, 0) + 1
        unique = name if taken[name] == 1 else f"{name}-{taken[name]}"
        found.append((folder / f"{unique}.png", folder / f"{unique}.json"))
    return found


def _predicted(
    models: Sequence[Predictor], sample: Sample, place: tuple[Path, Path], write: _Write | None
) -> Prediction:
    """Return what models find in one image, after it was written."""
    pixels = sample.read()
    found = [model(pixels, sample.proposals) for model in models]
    apart = _apart(found)
    picture = sheets.sheet(_cells(models, pixels, found, apart))
    size = (pixels.shape[0], pixels.shape[1])
    data = _data(models, sample, size, (found, apart))
    if write is not None:
        write(found[0], size, models[0].class_names)
    with artifacts.replacing(place[0]) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
    artifacts.write_text(place[1], json.dumps(data, sort_keys=True) + "\n")
    differs = None if not apart else any(map(models[0].said, apart))
    return Prediction(sample.name, models[0].said(found[0]), *place, differs)


def _apart(found: Sequence[Any]) -> list[Any]:
    """Return what each of two results has and the other has not; nothing where nobody can say."""
    if len(found) < 2 or not all(isinstance(one, Result) for one in found):
        return []
    first, second = found
    return [first.unlike(second), second.unlike(first)]


def _cells(
    models: Sequence[Predictor], pixels: Pixels, found: Sequence[Any], apart: Sequence[Any]
) -> Iterator[tuple[str, Pixels]]:
    """Yield caption and picture of each model's results, then of what only it has."""
    names = [model.model.path.name for model in models]
    if len(set(names)) < len(names):
        names = [str(model.model.path) for model in models]
    for name, model, one in zip(names, models, found, strict=True):
        yield name if len(models) > 1 else "", model.draw(pixels, one)
    if any(map(models[0].said, apart)):
        for name, model, one in zip(names, models, apart, strict=True):
            words = model.said(one) or "nothing"
            yield f"only in {name}: {words}", model.draw(pixels, one)


def _data(
    models: Sequence[Predictor],
    sample: Sample,
    size: tuple[int, int],
    results: tuple[Sequence[Any], Sequence[Any]],
) -> Json:
    """Return what the JSON file of an image holds."""
    found, apart = results
    rows: list[Json] = [
        {
            "model": model.model.path.name,
            "model_sha256": model.model.sha256,
            "backend": model.model.backend,
            "task": tasks.name(model.task),
            "said": model.said(one),
            "found": model.to_json(one, size),
        }
        for model, one in zip(models, found, strict=True)
    ]
    for row, model, one in zip(rows, models, apart, strict=False):
        row["only_here"] = model.to_json(one, size)
        row["only_here_said"] = model.said(one)
    return {
        "schema_version": SCHEMA_VERSION,
        "image": sample.name,
        "size": list(size),
        "models": rows,
    }
