"""The verb build: an ONNX file to an engine, with the precision that each layer really got."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from deploykit import backends, ops
from deploykit.files import artifacts, bundles
from deploykit.graph import canvases
from deploykit.measuring import records
from deploykit.pipeline import intake, places
from deploykit.pipeline.made import Made, path_or_none, recorded
from deploykit.recipes import opened
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from deploykit.backends import Backend, BuildOptions, Built, Shapes
    from deploykit.pipeline.made import StrPath
    from deploykit.recipes.opened import Opened
    from deploykit.values import Progress

_IN_PROCESS = "onnxruntime"
"""The backend that runs our ops from functions in the file."""


def build(  # noqa: PLR0913 - a verb's options, and the backend they are for
    model: StrPath,
    output: StrPath,
    backend: str,
    options: BuildOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] | None = None,
) -> Made:
    """Return the engine built from `model`, with the precision that each layer really got.

    The builder's own log is kept beside it as `<output>.log`. `say` hears before the slow step
    what the engine will need where it runs.

    Raises: InputError, OptionError, OutputError, BackendError; ProofError where a precision
    that the graph asks for was not honoured.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    log = output.parent / (output.name + ".log")
    places.check(
        {"the model": model},
        output=output,
        record=record,
        beside={"the log of -o": log, "--timing-cache": options.timing_cache},
    )
    chosen = backends.load(backend)
    with backends.ahead(backend):
        subject = intake.read(model)
        if say is not None and backend != _IN_PROCESS:
            for note in _needs(_planned(options.plugins, ops.counts(subject.graph))):
                say(note)
        built = _built(chosen, subject, output, options, progress)
    artifacts.write_text(log, built.log)
    target = " ".join([backend, *(f"SM{sm}" for sm in options.sms)])
    artifact = artifacts.describe(
        output,
        made_by={
            "verb": "build",
            "backend": backend,
            "sms": list(options.sms),
            "card": None if subject.card is None else subject.card.to_json(),
            "seconds": round(built.seconds, 3),
            **({} if built.plugins is None else {"plugins": dict(built.plugins)}),
            "precision": records.shares(built.layers),
        },
        parents=subject.origin(),
        interface=(built.inputs, built.outputs),
    )
    return recorded(Made(artifact, built.layers, tuple(_notes(built, target)), target), record)


def _notes(built: Built, target: str) -> Iterator[str]:
    """Yield what a build did, and what its engine needs where it runs."""
    shares = records.shares(built.layers)
    parts = ", ".join(f"{share:.1%} {name}" for name, share in shares.items())
    yield f"built in {built.seconds:.1f} s for {target}"
    yield f"read back: {parts} of the MACs"
    yield from records.remarks(built.layers)
    yield from _needs(built.plugins)


def _planned(plugins: str, counts: Mapping[str, int]) -> Mapping[str, Any] | None:
    """Return what a build with `--plugins` will have in place of our ops, as `Built.plugins`."""
    how = {"auto": "python", "none": "none"}.get(plugins, "library")
    return {"how": how, "ops": counts, "library": plugins} if counts else None


@contextlib.contextmanager
def _stored(subject: Opened) -> Iterator[Opened]:
    """Yield a model whose file holds what it computes: a builder reads the file."""
    if subject.as_stored:
        yield subject
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-model-") as folder:
        part = opened.made(subject.graph, Path(folder) / subject.path.name)
        part.write()
        yield part


def _built(
    chosen: Backend, subject: Opened, output: Path, options: BuildOptions, progress: Progress
) -> Built:
    """Return the outcome of a build, of one engine for each size of image that the model takes."""
    sizes = canvases.sizes(subject.graph)
    if len(sizes) < 2:
        with _stored(subject) as model:
            return chosen.build(model, output, options, progress=progress)
    with tempfile.TemporaryDirectory(prefix="deploykit-engines-") as folder:
        found, engines = [], {}
        for size, graph in canvases.split(subject.graph).items():
            assert size is not None  # as there are several
            engines[size] = Path(folder) / bundles.name(size)
            part = opened.made(graph, engines[size].with_suffix(".onnx"))
            part.write()  # a builder reads a file
            asked = replace(options, shapes=_at(size, options.shapes))
            found.append(chosen.build(part, engines[size], asked, progress=progress))
        bundles.write(output, engines)
    logs = [f"{bundles.name(s)}\n{b.log}" for s, b in zip(engines, found, strict=True)]
    return replace(found[0], seconds=sum(one.seconds for one in found), log="\n".join(logs))


def _at(size: tuple[int, int], shapes: Mapping[str, Shapes]) -> dict[str, Shapes]:
    """Return the shapes with images of this size: what a profile says of theirs is the batch."""
    return {
        name: tuple((*one[:2], *size) if len(one) == 4 else one for one in three)  # type: ignore[misc]  # three as before
        for name, three in shapes.items()
    }


def _needs(plugins: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what became of our ops, and what the engine needs for them where it runs."""
    if plugins is None:
        return
    named = ", ".join(f"{count} x {name}" for name, count in sorted(plugins["ops"].items()))
    if plugins["how"] == "none":
        yield f"standard ops for {named}: it runs without plugins"
    elif plugins["how"] == "library":
        name = PurePath(plugins["library"]).name
        yield f"plugins for {named}: where it runs, it needs this very {name}"
    else:
        yield f"plugins for {named}: where it runs, it needs deploykit and nvcc (CUDA toolkit)"
