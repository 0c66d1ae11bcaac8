"""What a user says of a model file that does not say it itself, and the card that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from deploykit import tasks
from deploykit.data import feeding
from deploykit.data.preprocess import Channels, Resize
from deploykit.data.presets import PRESETS
from deploykit.data.resizing import Interpolation
from deploykit.errors import OptionError, unknown_name
from deploykit.recipes import metadata, reading
from deploykit.recipes.guessing import PIXELS, SIDE, Guess, guess, is_size
from deploykit.recipes.identity import Setting
from deploykit.recipes.metadata import ModelCard
from deploykit.tasks import foreground, heads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.data.preprocess import Preprocess, Size
    from deploykit.recipes.guessing import Facts
    from deploykit.recipes.identity import Settings

Layout: TypeAlias = Literal["nchw", "nhwc"]
Three: TypeAlias = tuple[float, float, float]
UNKNOWN = "unknown"
"""The task of a card where nobody says it: enough to calibrate."""
_LEVELS = 255
_NEEDS_PREPROCESS = (
    "task",
    "decode",
    "mean",
    "std",
    "scale",
    "resize",
    "interpolation",
    "channels",
)
"""Parts of a description that say nothing where nobody says how images are prepared."""
OF_FILES = (
    *("preprocess", "mean", "std", "scale", "resize", "interpolation", "channels", "layout"),
    *("decode", "inputs"),
)
"""Parts that are said of an ONNX file or an engine: of a checkpoint its recipe knows them."""
_CHOICES: Mapping[str, tuple[object, ...]] = {
    "preprocess": tuple(PRESETS),
    "resize": get_args(Resize),
    "interpolation": get_args(Interpolation),
    "channels": get_args(Channels),
    "layout": get_args(Layout),
}


@dataclass(frozen=True)
class Description:
    """What a model is for and how it is fed; None: as its file says, or as can be told from it."""

    task: str | None = None
    """One of `tasks.SHIPPED`, by its name."""
    preprocess: str | None = None
    """One of `data.presets.PRESETS`, by its name; what follows changes parts of it."""
    mean: Three | None = None
    """Of pixels times `scale`."""
    std: Three | None = None
    scale: float | None = None
    """Factor of pixels of 0 to 255."""
    resize: Resize | None = None
    interpolation: Interpolation | None = None
    channels: Channels | None = None
    layout: Layout | None = None
    """Of the input of images; where its shape tells, it need not be said."""
    input_size: Size | None = None
    """Height and width, where the file leaves them open."""
    class_names: tuple[str, ...] | None = None
    decode: str | None = None
    """How outputs are read: one of `recipes.reading.DECODES`, by its name."""
    inputs: Mapping[str, Path | float] = field(default_factory=dict)
    """Inputs beside the images -> their value: a number, or an .npy file; they become constants."""

    def __post_init__(self) -> None:
        """Check the words among the values. Raises: OptionError."""
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise unknown_name(f"--{name}", str(value), map(str, known))
        if self.decode is not None:
            reading.check_name(str(self.decode))
        if self.task is not None:
            tasks.find(self.task)
        height, width = self.input_size or (1, 1)
        if not is_size(height, width):
            raise OptionError(
                f"--input-size {height}x{width}",
                expected=f"sides of 1 to {SIDE}, at most {PIXELS} pixels",
            )

    def __bool__(self) -> bool:
        """Return whether anything is said."""
        return any(getattr(self, each.name) for each in fields(self))


NOTHING = Description()


@dataclass(frozen=True)
class Described:
    """A card, and where its parts come from."""

    card: ModelCard
    notes: tuple[str, ...] = ()
    """What was guessed, for the user."""


def described(facts: Facts, said: Description, known: ModelCard | None) -> Described | None:
    """Return the card of a model by what its file, its user and its metadata say, in this order.

    known: the card that the file has. None: nobody says how images are prepared.

    Raises: OptionError where the parts do not fit together, or the options lack one.
    """
    if known is not None and not said:
        return Described(known)
    guessed = guess(facts)
    preset = said.preprocess or (None if known else guessed.preprocess)
    if known is None and preset is None:
        if any(getattr(said, name) is not None for name in _NEEDS_PREPROCESS):
            raise unsaid()
        return None
    if not said and guessed.size is None:
        return None  # nobody asked
    size = _size(said, known, guessed)
    base = known.preprocess if known and preset is None else PRESETS[str(preset)].sized(size)
    prepared = _prepared(base, said, guessed, preset)
    task, judged = _task(said, known, guessed)
    head, read = _decode(said, known, guessed, task)
    names, named = _names(said, known, guessed, head)
    card = known or ModelCard("", "", task, prepared, names, "")
    card = replace(card, task=task, preprocess=prepared, class_names=names)
    card = replace(card, settings={**card.settings, **head})
    if said.decode is not None:
        shapes = {spec.name: spec.shape for spec in facts.outputs}
        reading.check(said.decode, card, shapes)
    assumed = [] if said.preprocess or known else [f"images prepared as {preset}"]
    parts = [*assumed, *read, *named, *judged]
    notes = (f"guessed from {guessed.by}: {', '.join(parts)}",) if parts else ()
    properties: dict[str, str] = {}
    metadata.write(properties, card)
    return Described(metadata.read(properties) or card, notes)  # as files may hold it


def unsaid(what: str = "the options do not say how images are prepared") -> OptionError:
    """Return the error for a model of which nobody says how its images are prepared."""
    return OptionError(
        what,
        expected="--preprocess " + ", ".join(PRESETS),
        fix="; ".join(f"{name}: {preset.says}" for name, preset in PRESETS.items()),
    )


def _size(said: Description, known: ModelCard | None, guessed: Guess) -> Size:
    """Return the height and width of the input. Raises: OptionError."""
    found = said.input_size or (known.preprocess.size if known else guessed.size)
    if found is None:
        raise OptionError(
            "the model leaves the height and the width of its images open",
            expected="--input-size HxW, such as --input-size 640x640",
        )
    return found


def _prepared(
    base: Preprocess, said: Description, guessed: Guess, preset: str | None
) -> Preprocess:
    """Return `base` with what the user says. Raises: OptionError."""
    if said.input_size is not None and said.input_size != base.size:
        base = base.sized(said.input_size)
    given = {
        name: value
        for name in ("mean", "std", "scale", "resize", "interpolation", "channels")
        if (value := getattr(said, name)) is not None
    }
    if "channels" not in given and preset is not None and guessed.planes == 1:
        given["channels"] = "GREY"
    if "interpolation" in given:
        given["resampler"] = "pillow"
    made = replace(base, **given)
    colours = preset is not None and PRESETS[preset].colours
    if made.channels == "GREY" and colours and not (said.mean and said.std):
        raise OptionError(
            f"--preprocess {preset} for grey images: its means are of three colours",
            expected="--mean and --std of one number, or --preprocess unit",
        )
    if max(map(abs, made.mean)) > _LEVELS * made.scale:
        raise OptionError(
            f"a mean of {max(made.mean, key=abs):g} for pixels of 0 to {_LEVELS * made.scale:g}",
            expected="a mean of scaled pixels",
            fix="state the scale too: --scale 1 where means and deviations are of 0 to 255",
        )
    if min(made.std) <= 0 or made.scale <= 0:
        raise OptionError("a deviation or a scale of 0 or less", expected="positive numbers")
    return made


def _decode(
    said: Description, known: ModelCard | None, guessed: Guess, task: str
) -> tuple[Settings, list[str]]:
    """Return how outputs are read, as a card has it, and what is guessed of it."""
    if said.decode is not None:
        return {heads.SETTING: Setting(said.decode, "given")}, []
    if known is None and guessed.foreground and task == "semantic_segmentation":
        setting = Setting(guessed.foreground, "assumed")
        return {heads.SETTING: setting}, [f"one {guessed.foreground} per pixel"]
    if known is not None or guessed.decode is None or said.task not in (None, guessed.task):
        return {}, []
    return {heads.SETTING: Setting(guessed.decode, "assumed")}, [f"outputs of {guessed.decode}"]


def _without_background(names: tuple[str, ...], head: Settings) -> tuple[str, ...]:
    """Return names without one for the background, which torchvision counts as class 0."""
    counted = heads.SETTING in head and head[heads.SETTING].value == "torchvision"
    return names[1:] if counted and names[0].strip("_ ").lower() == "background" else names


def _names(
    said: Description, known: ModelCard | None, guessed: Guess, head: Settings
) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, and what is guessed of them. Raises: OptionError."""
    if head and head[heads.SETTING].value in foreground.MIDDLE:
        return _two_names(said.class_names or (known.class_names if known else ()))
    if said.class_names is not None:
        names = _without_background(said.class_names, head)
        if head and head[heads.SETTING].origin == "given":
            return names, []  # its form is checked with their number
        if guessed.classes not in (None, len(names)):
            raise OptionError(
                f"{len(said.class_names)} class names for a model of {guessed.classes} classes",
                fix="give one name per class, in the order of training",
            )
        return names, []
    return (known.class_names, []) if known is not None else _guessed_names(guessed)


def _guessed_names(guessed: Guess) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes that a file has or counts, and what is said of them."""
    if guessed.class_names:
        return guessed.class_names, [f"{len(guessed.class_names)} class names"]
    if guessed.classes:
        last = f" to class{guessed.classes - 1}" if guessed.classes > 1 else ""
        names = tuple(f"class{i}" for i in range(guessed.classes))
        return names, [f"classes called class0{last}"]
    return (), []


def _two_names(given: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of background and foreground, and what is guessed. Raises: OptionError."""
    names = (*foreground.NAMES[: 2 - len(given)], *given) if given else foreground.NAMES
    if len(names) != len(foreground.NAMES):
        raise OptionError(
            f"{len(given)} class names for a model with one number per pixel",
            expected="the name of the foreground, or of the background and the foreground",
        )
    return names, [] if names == given else [f"classes called {' and '.join(names)}"]


def _task(said: Description, known: ModelCard | None, guessed: Guess) -> tuple[str, list[str]]:
    if said.task is not None:
        return said.task, []
    if known is not None:
        return known.task, []
    if guessed.task in tasks.SHIPPED:
        return str(guessed.task), [f"the task {guessed.task}"]
    return UNKNOWN, []


def layout_of(said: Description, facts: Facts) -> Layout:
    """Return the layout of the images: as their input's shape tells, else as the user says.

    Raises: OptionError where the two differ.
    """
    spec = next((each for each in facts.inputs if len(each.shape) == feeding.RANK), None)
    told: Layout | None = None
    if spec is not None and feeding.is_nhwc(spec):
        told = "nhwc"
    elif spec is not None and spec.shape[1] in feeding.CHANNELS:
        told = "nchw"
    if said.layout is not None and told not in (None, said.layout):
        raise OptionError(f"--layout {said.layout} for the input {spec}", expected=str(told))
    return said.layout or told or "nchw"
