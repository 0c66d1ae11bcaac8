"""Command that shows what a model finds: predict."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the parser reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated

from deploykit.cli import options, printing, progress
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.checking import BackendName, Library, Model, Predictions, Threads
from deploykit.cli.making import AsJson, Op, Recipe
from deploykit.cli.parsing import Argument, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Images = Annotated[
    list[str], Argument(help="Image files, folders of them, or SOURCE:LOCATION as shapes:count=4.")
]


def predict(
    model: Model,
    images: Images,
    output: Annotated[Path, Option("-o", "--output", help="Folder for a .png and a .json each.")],
    *,
    against: Annotated[
        Path | None, Option(help="Another model: both side by side, and what only one finds.")
    ] = None,
    predictions: Predictions = None,
    recipe: Recipe = None,
    backend: BackendName = None,
    threads: Threads = 0,
    about: About = NOT_SAID,
    op: Op = None,
    plugins: Library = None,
    as_json: AsJson = False,
) -> None:
    """What a model finds in images, drawn on them and as JSON.

    Objects with a score below 0.3 are in the JSON alone.

    Examples:
        deploykit predict model.onnx photo.jpg -o predictions
        deploykit predict model.int8.onnx photos --against model.onnx -o predictions
        deploykit predict model.onnx cityscapes:DIR,split=test -o drawn --predictions results
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it

    said = about.description()
    wanted = pipeline.PredictOptions(against, recipe, backend, threads, said, predictions)
    with options.named(op, plugins):
        found = pipeline.predict(model, images, output, wanted, progress=progress.bar)
    header = ("image", "found", *([] if against is None else ["against"]))
    verdict = {True: "differs", False: "alike", None: "not compared"}
    rows = [
        (one.image, one.said or "nothing", *([] if against is None else [verdict[one.differs]]))
        for one in found
    ]
    data = {
        "predictions": [
            {**vars(one), "picture": str(one.picture), "data": str(one.data)} for one in found
        ]
    }
    text = "\n".join([printing.table(header, rows), f"wrote {len(found)} pictures to {output}"])
    printing.emit(data, text, as_json=as_json)


COMMANDS: Mapping[str, Callable[..., None]] = {"predict": predict}
