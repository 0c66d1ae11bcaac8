"""Open any file that holds a model: a checkpoint, an ONNX file or an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit import backends, tasks
from deploykit.backends import onnxruntime
from deploykit.backends.sizes import Sizes
from deploykit.data import feeding
from deploykit.errors import DeployError, InputError, ModelError, OptionError
from deploykit.files import artifacts, bundles, contents, onnxfile
from deploykit.pipeline import intake
from deploykit.recipes import describing, metadata, opened, reading
from deploykit.recipes.describing import NOTHING, UNKNOWN, unsaid
from deploykit.recipes.guessing import Facts
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.backends import Arrays, Session
    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.data.samples import Batch
    from deploykit.pipeline.made import StrPath
    from deploykit.recipes.describing import Description
    from deploykit.recipes.opened import Opened
    from deploykit.tasks import AnyTask
    from deploykit.values import Artifact

PYTORCH, ONNXRUNTIME = "pytorch", "onnxruntime"
_WHAT = "a checkpoint, an ONNX file, or an engine that `deploykit build` wrote"


@dataclass(frozen=True)
class Model:
    """A model ready to run, with what its file says about itself."""

    path: Path
    sha256: str
    backend: str
    session: Session
    card: ModelCard | None
    recipe: str | None = None
    """That the user named: a card's own word runs none but ours."""
    notes: tuple[str, ...] = ()
    """What was done to its graph, and guessed about it, for the user."""

    def contract(self) -> ModelCard:
        """Return the card. Raises: OptionError where neither file nor user says what is in it."""
        if self.card is None:
            raise unsaid(
                f"{self.path} does not say how its images are prepared or its outputs read"
            )
        return self.card

    def task(self, given: str | AnyTask | None = None) -> AnyTask:
        """Return the task given, else that of the recipe given, else the one that the file names.

        Raises: OptionError or ModelError where the file names none of ours.
        """
        if given is None and self.recipe is not None:
            given = RECIPES.load(self.recipe).task
        if given is not None:
            return reading.as_made(tasks.find(given), self.card)
        return task_named(self.contract(), self.path)

    def check_images(self) -> None:
        """Raise ModelError where the model takes more than a data set's images."""
        if not feeding.takes_images(self.session.inputs):
            given = "; ".join(map(str, self.session.inputs)) or "nothing"
            raise ModelError(
                f"{self.path} does not take images alone: {given}",
                expected="a model whose inputs are made from the images of a data set",
                fix="--input NAME=NUMBER or NAME=FILE.npy gives an input beside the images its "
                "value; `verify` and `bench` without a data set make all inputs",
            )

    def feeds(self, images: Floats, geometries: Sequence[Geometry]) -> Arrays:
        """Return what the model is fed for images float32[B, C, H, W]. Raises: ModelError."""
        self.check_images()
        return feeding.feeds(self.session.inputs, images, geometries)

    def forward(self, batch: Batch) -> dict[str, Floats]:
        """Return the outputs for a batch of a data set, without those of what filled it up.

        Raises: ModelError.
        """
        outputs = self.session.run(self.feeds(batch.images, batch.geometries))
        return feeding.unfilled(outputs, self.session.inputs[0], len(batch.images))


def task_named(card: ModelCard, path: Path) -> AnyTask:
    """Return the task that the card of a file names. Raises: OptionError, ModelError."""
    metadata.check_recipe(card)
    if card.task == UNKNOWN:
        raise OptionError(
            f"{path} does not say what it is for",
            expected="--task " + ", ".join(tasks.SHIPPED),
        )
    if card.task not in tasks.SHIPPED:
        raise OptionError(
            f"{path} is made for the task {card.task!r}, which deploykit does not ship",
            expected="one of " + ", ".join(tasks.SHIPPED),
            fix="give the recipe it was exported with, --recipe FILE, or in Python the task "
            "itself: deploykit.evaluate(..., task=my_task)",
        )
    return reading.as_made(tasks.SHIPPED[card.task], card)


def open_model(  # noqa: PLR0913 - six things that only some kinds of file take
    path: StrPath,
    *,
    backend: str | None = None,
    recipe: str | None = None,
    input_size: tuple[int, int] | None = None,
    threads: int = 0,
    about: Description = NOTHING,
    like: ModelCard | None = None,
) -> Model:
    """Return the model in `path`; its content, and an engine's sidecar, say what runs it.

    `recipe`: by name or as a file, over what the model's card says. `input_size` (H, W) is for
    checkpoints, which do not say it. `about`: what the user says of a file that does not say it.
    `like`: the card of the same model in another file, for an ONNX file that has none.

    Raises: InputError, OptionError, BackendError.
    """
    path = Path(path)
    found, data = read(path)
    match found:
        case "checkpoint":
            size = input_size or about.input_size
            return _open_checkpoint(path, recipe, size, NOTHING if like else about)
        case "engine":
            model = _described(_open_engine(path, backend, threads), about)
        case _:
            taken = intake.taken(opened.parsed(data, path), about, like=like)
            model = _open_onnx(taken, backend, threads)
    return replace(model, recipe=recipe)


def _described(engine: Model, about: Description) -> Model:
    """Return an engine with the card that its sidecar and the user make. Raises: OptionError."""
    facts = Facts(engine.session.inputs, engine.session.outputs)
    found = describing.described(facts, about, engine.card)
    return engine if found is None else replace(engine, card=found.card, notes=found.notes)


def read(path: Path) -> tuple[contents.Kind, bytes]:
    """Return what kind of model a file holds, and its content where that is an ONNX model.

    Raises: InputError where it cannot be read.
    """

    def is_onnx(first: bytes) -> bool:
        return _kind(first, path) == "onnx"

    data = contents.read(
        path, InputError, _WHAT, whole=is_onnx, check=partial(onnxfile.check_size, path)
    )
    return _kind(data[: contents.HEAD], path), data


def kind(path: Path) -> contents.Kind:
    """Return what kind of model a file holds. Raises: InputError where it cannot be read."""
    return _kind(contents.head(path, InputError, _WHAT), path)


def _kind(first: bytes, path: Path) -> contents.Kind:
    """Return the kind of a file that begins with `first`.

    An engine whose mark is not known is one by the word of its sidecar.
    """
    found = contents.kind(first)
    named = found == "onnx" and _said(path).get("backend") not in (None, ONNXRUNTIME)
    return "engine" if named else found


def _said(path: Path) -> Mapping[str, Any]:
    """Return how a file was made by its sidecar, nothing where there is none to be read."""
    try:
        said = artifacts.said(path).get("made_by")
    except DeployError:
        return {}
    return said if isinstance(said, dict) else {}


def _open_onnx(model: Opened, backend: str | None, threads: int) -> Model:
    if backend not in (None, ONNXRUNTIME):
        raise OptionError(
            f"{backend} runs engines, not {model.path.name}",
            fix=f"deploykit build {model.path} --backend {backend} "
            f"-o {model.path.with_suffix('.engine').name}",
        )
    built = optimised(model)
    session = onnxruntime.open_model(model, threads=threads)
    card = model.card or _card(built or {})
    return Model(model.path, model.sha256, ONNXRUNTIME, session, card, notes=model.notes)


def _open_engine(path: Path, backend: str | None, threads: int) -> Model:
    artifact = _artifact(path)
    name = backend or str(artifact.made_by.get("backend"))
    session = _engine_session(path, backends.load(name), threads)
    return Model(path, artifact.sha256, name, session, _card(artifact.made_by))


def _engine_session(path: Path, backend: backends.Backend, threads: int) -> Session:
    """Return a session of an engine, or of the engines for several sizes that one file holds."""
    sizes = bundles.sizes(path)

    def opener(size: tuple[int, int]) -> Callable[[], Session]:
        def open_one() -> Session:
            with bundles.one(path, size) as engine:
                return backend.open_session(engine, threads=threads)

        return open_one

    if not sizes:
        return backend.open_session(path, threads=threads)
    return Sizes({size: opener(size) for size in sizes})


def _open_checkpoint(
    path: Path, recipe: str | None, input_size: tuple[int, int] | None, about: Description
) -> Model:
    """Return the network of a checkpoint. Raises: OptionError for what its recipe says itself."""
    from deploykit.backends.pytorch import TorchSession  # noqa: PLC0415 - torch, as below
    from deploykit.networks import loading  # noqa: PLC0415 - torch, which nothing else here needs

    unused = [name for name in describing.OF_FILES if getattr(about, name)]
    if unused:
        raise OptionError(
            f"--{unused[0].replace('_', '-')} for the checkpoint {path.name}",
            expected="a file whose recipe does not say how it is fed and read",
            fix="leave it out, or export the checkpoint and state it of the ONNX file",
        )
    options = loading.NetworkOptions(
        recipe=recipe, input_size=input_size, class_names=about.class_names
    )
    network = loading.load_network(path, options)
    session = TorchSession(network)
    return Model(path, network.card.checkpoint_sha256, PYTORCH, session, network.card, recipe)


def _card(made_by: Mapping[str, Any]) -> ModelCard | None:
    return ModelCard.from_json(made_by["card"]) if made_by.get("card") else None


def made_by(path: Path) -> Mapping[str, Any]:
    """Return how an engine was made, from its sidecar. Raises: InputError where it has none."""
    return _artifact(path).made_by


def _artifact(path: Path) -> Artifact:
    if not artifacts.sidecar(path).is_file():
        raise InputError(
            f"{path} has no sidecar {artifacts.sidecar(path).name}, which says what built it",
            expected=_WHAT,
        )
    return artifacts.read(path)


def optimised(model: Opened) -> Mapping[str, Any] | None:
    """Return how ONNX Runtime's `build` made a file, None where it did not.

    Raises: InputError where the file changed since.
    """
    if _said(model.path).get("verb") != "build":
        return None
    return artifacts.read(model.path, digest=model.sha256).made_by
