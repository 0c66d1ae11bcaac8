"""Commands that look and measure: inspect, verify, eval, bench, report, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from deploykit.cli import options, printing, progress
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.making import AsJson, BatchSize, Op, Recipe, Record
from deploykit.cli.parsing import Argument, Option
from deploykit.errors import ProofError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Model = Annotated[Path, Argument(help="A checkpoint, an ONNX file or an engine.")]
BackendName = Annotated[
    str | None, Option("--backend", help="Default: what the file was built for.")
]
Library = Annotated[
    Path | None,
    Option("--plugins", help="The plugin library of an engine that was built with one."),
]
Threads = Annotated[int, Option(help="Of the runtime; 0: its own choice.")]
SourceSpec = Annotated[
    str,
    Option("--source", help="SOURCE:LOCATION: coco:DIR, imagefolder:DIR, shapes:count=500."),
]

Predictions = Annotated[
    Path | None,
    Option(help="Folder for what is found, as the benchmark of the source takes it: cityscapes."),
]


def inspect(
    model: Annotated[Path, Argument(help="An ONNX file or an engine.")],
    *,
    table: Annotated[
        Path | None, Option(help="Calibration table of an ONNX file: tells more of its risk.")
    ] = None,
    op: Op = None,
    plugins: Library = None,
    as_json: AsJson = False,
) -> None:
    """Precision of every layer, and for Q/DQ graphs what would fall back to float, and why.

    Of an ONNX file also the risk that INT8 costs accuracy, foretold from its weights.

    Examples:
        deploykit inspect model.onnx --table ranges.json
        deploykit inspect model.int8.onnx
        deploykit inspect model.engine --json
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it

    with options.named(op, plugins):
        found = pipeline.inspect(model, table=table)
    printing.emit(found.to_json(), printing.inspection(found), as_json=as_json)
    if found.errors:
        raise ProofError(
            f"{len(found.errors)} of the findings are errors: TensorRT would refuse the graph",
            fix="see the findings above; `deploykit quantize` makes graphs without them",
        )


def verify(
    candidate: Model,
    *,
    against: Annotated[Path, Option(help="The reference: checkpoint, ONNX or engine.")],
    recipe: Recipe = None,
    atol: Annotated[float, Option(help="Absolute tolerance.")] = 1e-5,
    rtol: Annotated[float, Option(help="Tolerance over the range of each output column.")] = 1e-4,
    source: Annotated[
        str | None, Option(help="SOURCE:LOCATION of images. Default: random ones.")
    ] = None,
    count: Annotated[int, Option(help="Images to compare on.")] = 8,
    about: About = NOT_SAID,
    op: Op = None,
    plugins: Library = None,
    as_json: AsJson = False,
) -> None:
    """Compare the outputs of two files of the same model, column by column.

    Examples:
        deploykit verify model.onnx --against weights.pth
        deploykit verify model.int8.onnx --against model.onnx --source folder:photos --rtol 0.05
    """
    from deploykit import pipeline  # noqa: PLC0415

    wanted = pipeline.VerifyOptions(recipe, atol, rtol, source, count, about.description())
    with options.named(op, plugins):
        found = pipeline.verify(candidate, against, wanted, progress=progress.bar)
    header = ("output", "max error", "mean error", "of range", "cosine", "")
    rows = [
        (
            a.output,
            f"{a.max_abs:.3g}",
            f"{a.mean_abs:.3g}",
            f"{a.relative:.3g}",
            f"{a.cosine:.6f}",
            "ok" if a.passed else "DIFFERS",
        )
        for a in found
        if "[" not in a.output or not a.passed
    ]
    data = {"agreements": [vars(a) for a in found], "passed": all(a.passed for a in found)}
    notes = [f"{a.output}: {a.note}" for a in found if a.note]
    printing.emit(data, "\n".join([printing.table(header, rows), *notes]), as_json=as_json)
    different = [a.output for a in found if not a.passed]
    if different:
        raise ProofError(
            f"{candidate} differs from {against} in {len(different)} places: {different[-1]}",
            expected=f"errors of at most {atol:g} + {rtol:g} of the range",
        )


def evaluate(
    model: Model,
    *,
    source: SourceSpec,
    against: Annotated[
        Path | None,
        Option(help="Another model, such as the FP32 one: what it finds is taken for the truth."),
    ] = None,
    predictions: Predictions = None,
    recipe: Recipe = None,
    backend: BackendName = None,
    limit: Annotated[int | None, Option(help="Images to use. Default: all.")] = None,
    batch_size: BatchSize = None,
    threads: Threads = 0,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    plugins: Library = None,
    as_json: AsJson = False,
) -> None:
    """How well a checkpoint, an ONNX file or an engine does its task: AP, top-1, mIoU ...

    With --against no labels are needed: the other model's best class, label map, or objects with a
    score of 0.3 or more are the truth.

    Examples:
        deploykit eval repvgg.onnx --source imagefolder:val
        deploykit eval model.int8.onnx --source coco:val2017 --record records.jsonl
        deploykit eval weights.pth --source coco:val2017 --limit 500
        deploykit eval model.int8.onnx --against model.onnx --source folder:photos
        deploykit eval hrnet.onnx --source cityscapes:/data/cityscapes --predictions results
    """
    from deploykit import pipeline  # noqa: PLC0415

    said = about.description()
    wanted = pipeline.EvalOptions(
        source, recipe, backend, limit, batch_size, threads, said, against, predictions
    )
    with options.named(op, plugins):
        found = pipeline.evaluate(model, wanted, record=record, progress=progress.bar)
    printing.emit(found.to_json(), printing.accuracy(found), as_json=as_json)


def bench(
    models: Annotated[list[Path], Argument(help="ONNX files or engines.")],
    *,
    backend: BackendName = None,
    batch_sizes: Annotated[str | None, Option(help="Such as 1,32.  [default: the model's]")] = None,
    warmup: Annotated[float, Option(help="Seconds that are not kept.")] = 1.0,
    duration: Annotated[float, Option(help="Seconds that are, at least.")] = 5.0,
    iterations: Annotated[int, Option(help="Iterations that are, at least.")] = 50,
    cuda_graph: Annotated[bool, Option(help="Replay a captured CUDA graph.")] = False,
    transfers: Annotated[bool, Option(help="Copy inputs in and outputs out.")] = True,
    end_to_end: Annotated[
        str | None,
        Option(help="SOURCE:LOCATION: time image to results, not the model alone."),
    ] = None,
    inputs: Annotated[
        str | None, Option(help="SOURCE:LOCATION of the model's inputs. Default: random ones.")
    ] = None,
    recipe: Recipe = None,
    threads: Threads = 0,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    plugins: Library = None,
    as_json: AsJson = False,
) -> None:
    """FPS and latency, with raw samples, every switch and the machine on record.

    Examples:
        deploykit bench model.onnx model.int8.onnx --batch-sizes 1,8 --record records.jsonl
        deploykit bench model.engine --cuda-graph --no-transfers
        deploykit bench model.onnx --end-to-end folder:photos
    """
    from deploykit import pipeline  # noqa: PLC0415
    from deploykit.measuring.benchmarking import BenchOptions  # noqa: PLC0415

    base = BenchOptions(
        warmup_seconds=warmup,
        duration_seconds=duration,
        min_iterations=iterations,
        transfers=transfers,
        cuda_graph=cuda_graph,
        threads=threads,
    )
    sizes = () if batch_sizes is None else options.integers("--batch-sizes", batch_sizes)
    said = about.description()
    wanted = pipeline.BenchPlan(base, sizes, backend, end_to_end, recipe, inputs, said)
    with options.named(op, plugins):
        found = pipeline.bench(models, wanted, record=record, progress=progress.bar)
    data = {"records": [r.to_json() for r in found]}
    printing.emit(data, printing.measurements(found), as_json=as_json)


def report(
    records: Annotated[list[Path], Argument(help="JSON-lines files of records.")],
    output: Annotated[Path, Option("-o", "--output", help="report.html; .md beside it.")],
    *,
    title: Annotated[str, Option(help="Heading of the page.")] = "deploykit report",
    pictures: Annotated[
        Path | None, Option(help="Folder that `deploykit predict` wrote: a few are shown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Records to one table: a self-contained HTML page, and the same as Markdown.

    Examples:
        deploykit report records.jsonl --pictures predictions -o report.html
    """
    from deploykit import pipeline  # noqa: PLC0415

    summary, written = pipeline.report(records, output, title=title, pictures=pictures)
    data = {"written": [str(path) for path in written]}
    text = "\n".join([summary, "", *(f"wrote {path}" for path in written)])
    printing.emit(data, text, as_json=as_json)


def doctor(*, as_json: AsJson = False) -> None:
    """What is on this machine, which precisions are possible, and what to install.

    Examples:
        deploykit doctor
        deploykit doctor --json
    """
    from deploykit.measuring import environment  # noqa: PLC0415

    rows = environment.doctor()
    printing.emit({"rows": [vars(row) for row in rows]}, printing.findings(rows), as_json=as_json)


COMMANDS: Mapping[str, Callable[..., None]] = {
    "inspect": inspect,
    "verify": verify,
    "eval": evaluate,
    "bench": bench,
    "report": report,
    "doctor": doctor,
}
