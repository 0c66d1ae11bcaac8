"""Checkpoint and recipe -> ONNX, accepted only when ONNX Runtime agrees with PyTorch."""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from deploykit import (
    acceptance,
    artifacts,
    backends,
    checkpoint,
    customops,
    files,
    fusion,
    metadata,
    onnxfile,
    random_inputs,
    verification,
)
from deploykit.errors import CheckpointError, OptionError, ProofError, unknown_name
from deploykit.matching import Selection
from deploykit.metadata import ModelCard
from deploykit.values import TensorSpec, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.backends import Arrays
    from deploykit.recipe import Recipe
    from deploykit.values import Agreement, Artifact, Progress

INPUT = "images"
BATCH = "batch"
OPSETS = range(17, 24)
"""17 is what TensorRT 8.6 reads; 19 is the first with FP16 scales for Q/DQ."""
TOLERANCE = 1e-4
"""Largest error accepted of a fold or an export, relative to the range of each output column."""
NOISE = 1e-5
"""Error accepted beside it: a class score that hardly varies has no range to speak of."""
_TRIALS = 2
_THRESHOLD = "score_threshold"
"""Attribute of a detector's network: rows are boxes with a score above it."""
_TRACE_BATCH = 2  # torch.export takes a dimension of 1 for a constant


@dataclass(frozen=True)
class ExportOptions:
    """What the user may decide; None: found out from the checkpoint or the recipe."""

    recipe: str | None = None
    variant: str | None = None
    input_size: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = None
    opset: int = 19


@dataclass(frozen=True)
class Network:
    """A trained network with its contract."""

    module: nn.Module
    """As it was trained (branches unfolded), in eval mode."""
    recipe: Recipe
    card: ModelCard

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the network takes: the images, then what its recipe adds."""
        preprocess = self.card.preprocess
        images = TensorSpec(INPUT, "float32", (BATCH, 3, *preprocess.size))
        return (images, *self.recipe.extra_inputs(preprocess))


class TorchSession:
    """A network run by PyTorch on the CPU: the reference of every proof."""

    def __init__(self, network: Network) -> None:
        """Keep the network and describe its interface."""
        self._module = network.module
        self.inputs = network.inputs
        self.outputs = tuple(TensorSpec(name, "float32", ()) for name in network.recipe.outputs)

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return output name -> array for one batch."""
        with torch.inference_mode():
            result = self._module(
                *(torch.from_numpy(np.ascontiguousarray(feeds[s.name])) for s in self.inputs)
            )
        values = result if isinstance(result, tuple) else (result,)
        return {s.name: v.numpy() for s, v in zip(self.outputs, values, strict=True)}

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return a function that runs the batch once; a CPU has no device clock."""
        if cuda_graph:
            raise OptionError("PyTorch on the CPU has no CUDA graphs", fix="use --no-cuda-graph")
        del transfers  # there is no device to copy to

        def step() -> None:
            self.run(feeds)

        return step


def load_network(path: Path, options: ExportOptions) -> Network:
    """Return the network of a checkpoint with its weights loaded.

    Raises: CheckpointError, OptionError.
    """
    loaded = checkpoint.load(path)
    recipe, variant, classes = identify(loaded.state, options, path.name)
    state = recipe.family.adapt(loaded.state)
    module = recipe.family.build(variant, classes)
    checkpoint.fit(module, dict(state), name=f"{recipe.name} {variant}")
    preprocess = recipe.preprocess(variant, options.input_size)
    if any(side <= 0 or side % recipe.size_multiple for side in preprocess.size):
        raise OptionError(
            f"input size {'x'.join(map(str, preprocess.size))} does not fit {recipe.name}",
            expected=f"two positive multiples of {recipe.size_multiple}, such as 640x640",
        )
    card = ModelCard(
        recipe=options.recipe or recipe.name,
        variant=variant,
        task=recipe.task,
        preprocess=preprocess,
        class_names=_class_names(recipe, classes, options.class_names or loaded.class_names),
        checkpoint_sha256=loaded.sha256,
        keep_float=recipe.keep_float,
    )
    return Network(module.eval(), recipe, card)


def identify(
    state: Mapping[str, torch.Tensor], options: ExportOptions, name: str
) -> tuple[Recipe, str, int]:
    """Return the recipe, variant and number of classes that a state dict belongs to."""
    names = [options.recipe] if options.recipe else sorted(files.shipped("recipe"))
    for recipe in map(files.recipe, names):
        found = recipe.family.identify(recipe.family.adapt(state))
        if found is None:
            continue
        variant = options.variant or found[0]
        if variant not in recipe.variants:
            raise unknown_name(f"variant of {recipe.name}", variant, recipe.variants)
        return recipe, variant, found[1]
    keys = ", ".join(list(state)[:3])
    raise CheckpointError(
        f"{name} is not a checkpoint of {' or '.join(names)}: its first keys are {keys}",
        fix="name the model's family with --recipe, by name or as a file of your own",
    )


def _class_names(recipe: Recipe, count: int, given: tuple[str, ...] | None) -> tuple[str, ...]:
    names = given or recipe.class_names(count)
    if len(names) != count:
        raise OptionError(
            f"{len(names)} class names for a model of {count} classes",
            fix="give one name per class, comma-separated, in the order of training",
        )
    return names


def export(
    path: Path, output: Path, options: ExportOptions, *, progress: Progress = silent
) -> tuple[Artifact, tuple[Agreement, ...]]:
    """Return the ONNX artifact made from a checkpoint, and how well it agrees with PyTorch.

    Raises: CheckpointError, OptionError, OutputError; ProofError where folding the branches
    or the export changed the outputs by more than TOLERANCE of their range.
    """
    if options.opset not in OPSETS:
        raise OptionError(f"opset {options.opset}", expected=f"{OPSETS.start} to {OPSETS.stop - 1}")
    artifacts.check_writable(output)
    steps = progress(("load", "fold branches", "trace", "fuse", "prove"), "export", 5)
    next(steps)
    trained = load_network(path, options)
    next(steps)
    folded = Network(
        trained.recipe.family.deploy(trained.module).eval(), trained.recipe, trained.card
    )
    reference = TorchSession(_filled(trained))
    _prove("folding the branches", TorchSession(_filled(folded)), reference)
    next(steps)
    model = to_onnx(folded, options.opset)
    next(steps)
    fusion.fuse(model)
    customops.attach(model)
    metadata.write(model.metadata_props, folded.card)
    next(steps)
    with artifacts.replacing(output) as temporary:
        onnxfile.write_model(model, temporary)
        session, selection = acceptance.open_filled(temporary)
        agreements = _prove("the export", session, reference, selection)
    for _ in steps:
        pass
    artifact = artifacts.describe(
        output,
        made_by={
            "verb": "export",
            "recipe": folded.card.recipe,
            "variant": folded.card.variant,
            "opset": options.opset,
            "max_relative_error": max(a.relative for a in agreements),
        },
        parents=(path,),
        inputs=session.inputs,
        outputs=session.outputs,
    )
    return artifact, agreements


def to_onnx(network: Network, opset: int) -> ir.Model:
    """Return the ONNX graph of a network, with a dynamic batch and no trace of this machine."""
    sizes = [[size for size in spec.shape[1:] if isinstance(size, int)] for spec in network.inputs]
    batch = torch.export.Dim(BATCH)
    module = copy.deepcopy(network.module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            tuple(torch.zeros(_TRACE_BATCH, *size) for size in sizes),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in network.inputs],
            output_names=list(network.recipe.outputs),
            dynamic_shapes=tuple({0: batch} for _ in sizes),
            custom_translation_table=customops.translations(),
            verbose=False,
        )
    assert program is not None  # only the TorchScript exporter returns None
    model = program.model
    found = model.opset_imports[""]
    if found != opset:
        raise ProofError(f"the exporter wrote opset {found}", expected=f"opset {opset}")
    return model


def _filled(network: Network) -> Network:
    """Return the network without a score threshold, where it has one: all its rows are filled."""
    if not hasattr(network.module, _THRESHOLD):
        return network
    module = copy.copy(network.module)
    setattr(module, _THRESHOLD, acceptance.NO_THRESHOLD)
    return replace(network, module=module)


def _prove(
    what: str,
    candidate: backends.Session,
    reference: backends.Session,
    selection: Selection = Selection(score=acceptance.NO_THRESHOLD),  # noqa: B008 - a frozen value
) -> tuple[Agreement, ...]:
    feeds = [
        random_inputs.feeds(reference.inputs, seed=seed, batch=seed + 1) for seed in range(_TRIALS)
    ]
    agreements = verification.verify(
        candidate, reference, feeds, atol=NOISE, rtol=TOLERANCE, columns=True, selection=selection
    )
    for agreement in agreements:
        if not agreement.passed:
            raise ProofError(
                f"{what} changed output {agreement.output!r}: largest error "
                f"{agreement.max_abs:.3g}, {agreement.relative:.3g} of its range"
                + (f"; {agreement.note}" if agreement.note else ""),
                expected=f"at most {TOLERANCE:g} of the range",
                fix="check that the recipe's network equals the one that was trained",
            )
    names = {spec.name for spec in reference.outputs}
    return tuple(agreement for agreement in agreements if agreement.output in names)
