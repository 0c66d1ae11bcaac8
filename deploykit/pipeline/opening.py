"""Open any file that holds a model: a checkpoint, an ONNX file or an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit import backends
from deploykit.errors import InputError, ModelError, OptionError
from deploykit.files import artifacts, onnxfile
from deploykit.recipes import metadata
from deploykit.recipes.metadata import ModelCard

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import Session
    from deploykit.data.preprocess import Floats
    from deploykit.tasks.detections import Decode

CHECKPOINTS = (".pth", ".pt", ".safetensors")
PYTORCH = "pytorch"


@dataclass(frozen=True)
class Opened:
    """A model ready to run, with what its file says about itself."""

    path: Path
    sha256: str
    backend: str
    session: Session
    card: ModelCard | None
    recipe: str | None = None
    """That the user named: a card's own word runs none but ours."""

    def contract(self) -> ModelCard:
        """Return the card. Raises: ModelError where the file has none."""
        if self.card is None:
            raise ModelError(
                f"{self.path} does not say how its images are prepared or its outputs read",
                expected="an ONNX file from `deploykit export`, or an engine built from one",
            )
        return self.card

    def decode(self) -> Decode:
        """Return the function that turns outputs into detections. Raises: OptionError."""
        recipe = metadata.recipe_of(self.contract(), self.recipe)
        if recipe.decode is None:
            raise OptionError(
                f"{self.path} is a classifier: {recipe.name} has no detections",
                expected="a detector",
            )
        return recipe.decode

    def images(self) -> str:
        """Return the name of the only input. Raises: ModelError where there are more."""
        first, *others = self.session.inputs
        if others:
            raise ModelError(
                f"{self.path} takes more than images: {'; '.join(map(str, others))}",
                expected="a model whose only input is made from the images of a data set",
                fix="`verify` and `bench` without a data set make all inputs",
            )
        return first.name

    def forward(self, images: Floats) -> dict[str, Floats]:
        """Return the outputs for images float32[B, 3, H, W]."""
        outputs = self.session.run({self.images(): images})
        return {name: value.astype("float32", copy=False) for name, value in outputs.items()}


def open_model(
    path: Path,
    *,
    backend: str | None = None,
    recipe: str | None = None,
    input_size: tuple[int, int] | None = None,
    threads: int = 0,
) -> Opened:
    """Return the model in `path`; the suffix and the sidecar say what runs it.

    `recipe`: by name or as a file, over what the model's card says. `input_size` (H, W) is for
    checkpoints, which do not say it.

    Raises: InputError, OptionError, BackendError.
    """
    if path.suffix in CHECKPOINTS:
        return _open_checkpoint(path, recipe, input_size)
    sha256 = artifacts.sha256(path)
    if path.suffix == ".onnx":
        name = backend or "onnxruntime"
        if name != "onnxruntime":
            raise OptionError(
                f"{name} runs engines, not {path.name}",
                fix=f"deploykit build {path} --backend {name} -o {path.stem}.engine",
            )
        card = metadata.read(onnxfile.read_model(path).metadata_props)
    else:
        said = made_by(path)
        name = backend or str(said.get("backend"))
        card = ModelCard.from_json(said["card"]) if said.get("card") else None
    session = backends.load(name).open_session(path, threads=threads)
    return Opened(path, sha256, name, session, card, recipe)


def _open_checkpoint(path: Path, recipe: str | None, input_size: tuple[int, int] | None) -> Opened:
    from deploykit.backends.pytorch import TorchSession  # noqa: PLC0415 - torch, as below
    from deploykit.networks import loading  # noqa: PLC0415 - torch, which nothing else here needs

    options = loading.NetworkOptions(recipe=recipe, input_size=input_size)
    network = loading.load_network(path, options)
    session = TorchSession(network)
    return Opened(path, network.card.checkpoint_sha256, PYTORCH, session, network.card, recipe)


def made_by(path: Path) -> dict[str, Any]:
    """Return how an engine was made, from its sidecar. Raises: InputError where it has none."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if not artifacts.sidecar(path).is_file():
        raise InputError(
            f"{path} has no sidecar {artifacts.sidecar(path).name}, which says what built it",
            expected="a checkpoint, an .onnx file, or an engine that `deploykit build` wrote",
        )
    return dict(artifacts.read(path).made_by)
