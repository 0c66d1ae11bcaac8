"""The networks that `systems.py` takes along the road, their weights and their images.

Most of these families have no weights that could lie here, so theirs are random, by seed, and
mildly uneven: every output channel has a size of its own. On four photographs each layer is then
scaled, one after the other, until what it gives has a deviation of 1, and each batch norm gets the
statistics of what comes in, so that signals pass through as in a trained network. What the scores,
boxes and masks are made of gets the mean and deviation of `Spread`, so that there is something to
find.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from systems_list import COMPARED, HIDDEN
from torch import nn

from deploykit.data import feeding, samples, sources
from deploykit.recipes import identity
from deploykit.recipes.identity import Facts
from deploykit.recipes.recipe import RECIPES
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from systems_list import Spread, System
    from torch import Tensor

    from deploykit.recipes.recipe import Recipe

ROOT = Path(__file__).parent.parent
SEED = 0
SIZED = (240, 320)
"""Height and width of the photographs."""
CALIBRATED, FITTED = 8, 4
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
BRANCH = 0.1
"""What the last norm of a residual branch multiplies with: with as much as 1, a deep network with
random weights hands on noise a hundredfold, as a trained one does not."""
ENDS = ("bn3", "bn2", "branch2c.1")
"""Names of the norms that end one."""
SHARP = 3.0
"""By which queries and keys of a decoder are larger: each query looks at few places."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
REGIONS = 256
"""Rows of R-CNN's second input."""


# --- images --------------------------------------------------------------------------------------


def photographs(folder: Path) -> None:
    """Write crops of photographs, by seed: calibrated from left halves, compared of right ones."""
    rng = np.random.default_rng(SEED)
    originals = [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    regions: dict[str, Any] = {}
    for index in range(CALIBRATED + COMPARED):
        part, first = ("calibrated", 0.0) if index < CALIBRATED else ("compared", 0.5)
        whole = originals[index % len(originals)]
        edges = int(first * whole.width), int((first + 0.5) * whole.width)
        half = whole.crop((edges[0], 0, edges[1], whole.height))
        wide = int(half.width * rng.uniform(0.5, 1.0))
        high = min(half.height, wide * SIZED[0] // SIZED[1])
        x, y = (int(rng.integers(n + 1)) for n in (half.width - wide, half.height - high))
        crop = half.crop((x, y, x + wide, y + high)).resize(SIZED[::-1]).convert("RGB")
        (folder / part).mkdir(parents=True, exist_ok=True)
        crop.save(folder / part / f"{index:03}.png")
        regions[f"{index:03}.png"] = boxes(rng)
    (folder / "regions.json").write_text(json.dumps(regions), encoding="utf-8")


def boxes(rng: np.random.Generator) -> list[list[int]]:
    """Return regions of a photograph as R-CNN takes them: first and last pixels."""
    sides = rng.integers(20, 160, (REGIONS, 2))
    corners = (rng.random((REGIONS, 2)) * (np.array(SIZED)[::-1] - sides)).astype(int)
    found: list[list[int]] = np.concatenate([corners, corners + sides - 1], 1).tolist()
    return found


def source(system: System, folder: Path, part: str) -> str:
    """Return the photographs as `--calib-source` and `--source` take them."""
    text = f"folder:{folder / part}"
    return f"proposals:file={folder / 'regions.json'},{text}" if system.recipe == "rcnn" else text


def feeds(system: System, recipe: Recipe, text: str, count: int) -> dict[str, Tensor]:
    """Return a batch of a source's images as the network takes them."""
    preprocess = recipe.variant(system.variant).sized(system.size)
    images = TensorSpec("images", "float32", ("batch", 3, *system.size))
    inputs = (images, *recipe.extra_inputs(preprocess))
    batch = next(samples.batches(sources.dataset(text), preprocess, count))
    fed = feeding.feeds(inputs, batch.images, batch.geometries)
    return {each.name: torch.from_numpy(np.asarray(fed[each.name])) for each in inputs}


# --- weights -------------------------------------------------------------------------------------


def network(system: System, images: Mapping[str, Tensor]) -> nn.Module:
    """Return a network with random weights through which these images pass well."""
    made = narrow(system) or _as_set(system)
    randomise(made)
    with torch.no_grad(), Fitting(made.eval(), system.spreads):
        made(*images.values())
    return made.eval()


def _as_set(system: System) -> nn.Module:
    """Return a network with the settings of a system."""
    recipe = RECIPES.load(system.recipe)
    plain = recipe.network(system.variant, system.classes)
    found = identity.found(
        recipe.identify(plain.state_dict(), Facts(variant=system.variant, given=system.settings))
    )
    assert found is not None, "it is a network of this recipe"
    return found.build() if found.build else plain


def narrow(system: System) -> nn.Module | None:
    """Return an R-CNN with a quarter of the widths, None of another family."""
    if system.recipe != "rcnn":
        return None
    from deploykit.networks.detectors import rcnn  # noqa: PLC0415 - of this family alone

    whole = rcnn.TRUNKS[system.variant]
    few = tuple(
        type(conv)(**{**vars(conv), "width": conv.width // 4}) for conv in whole.convolutions
    )
    trunk = type(whole)(**{**vars(whole), "convolutions": few, "hidden": whole.hidden // 4})
    made = rcnn.Rcnn(trunk, system.classes, (3, 1, 1), rcnn.Limits(), boxes=True)
    with torch.no_grad():
        made.get_buffer("mean").fill_(110)
        made.get_buffer("box_unwhiten").copy_(0.1 * torch.eye(4).expand(system.classes, 4, 4))
    return made


def randomise(made: nn.Module) -> None:
    """Give every weight a random value, by seed, and every output channel a size of its own."""
    generator = torch.Generator().manual_seed(SEED)
    for key, value in made.state_dict().items():
        if not value.is_floating_point() or value.ndim == 0 or key in _KEPT or "mask" in key[-5:]:
            continue
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith("weight")):
            value.copy_(torch.exp(torch.randn(value.shape, generator=generator) / 4))
            if key.removesuffix(".weight").endswith(ENDS) and not _has(made, key, "bn2", "bn3"):
                value.mul_(BRANCH)
        elif "embed.weight" in key and value.ndim == 2 and "class" not in key:
            value.normal_(0, 1, generator=generator)  # what tells DETR's queries apart
        elif value.ndim == 1:
            value.normal_(0, 0.2, generator=generator)
        elif value[0].numel():
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)
            sizes = torch.randn(len(value), *[1] * (value.ndim - 1), generator=generator)
            value.mul_(torch.exp(sizes / 4))
        if key.endswith("multihead_attn.in_proj_weight"):
            value[: len(value) * 2 // 3].mul_(SHARP)


def _has(made: nn.Module, key: str, one: str, other: str) -> bool:
    """Return whether beside the norm `one` there is `other`, which ends the branch."""
    return f".{one}." in key and key.replace(f".{one}.", f".{other}.") in made.state_dict()


_KEPT = ("mean", "box_unwhiten", "box_mean")
"""R-CNN's constants, which are no weights."""


class Fitting:
    """While it is entered, each layer of a network is fitted to what passes first."""

    def __init__(self, made: nn.Module, spreads: Mapping[str, Spread]) -> None:
        """Choose what is fitted, and to what."""
        self._layers = dict(self._chosen(made, spreads))
        self._handles: list[Any] = []

    @staticmethod
    def _chosen(
        made: nn.Module, spreads: Mapping[str, Spread]
    ) -> Iterator[tuple[nn.Module, Spread]]:
        for name, module in made.named_modules():
            if isinstance(module, WEIGHTED) or hasattr(module, "running_var"):
                yield module, next((s for part, s in spreads.items() if part in name), HIDDEN)

    def __enter__(self) -> None:
        for module in self._layers:
            norm = hasattr(module, "running_var")
            attach: Any = module.register_forward_pre_hook if norm else module.register_forward_hook
            self._handles.append(attach(_norm if norm else self._layer))

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _layer(self, module: Any, _: Any, found: Tensor) -> Tensor | None:  # noqa: ANN401 - a hook
        spread = self._layers.pop(module, None)
        if spread is None or not found.numel():
            return None
        if spread is HIDDEN:
            scale = spread.deviation / found.square().mean().sqrt().clamp(min=1e-6)
            for weight in filter(lambda each: each is not None, (module.weight, module.bias)):
                weight.mul_(scale)
            return found * scale
        channels = -1 if isinstance(module, nn.Linear) else 1
        others = [axis for axis in range(found.ndim) if axis != channels % found.ndim]
        means = found.mean(others, keepdim=True)
        scale = spread.deviation / (found - means).square().mean().sqrt().clamp(min=1e-6)
        shift = spread.mean - means * scale
        module.weight.mul_(scale)
        module.bias.mul_(scale).add_(shift.flatten())
        return found * scale + shift


def _norm(module: Any, given: tuple[Tensor, ...]) -> None:  # noqa: ANN401 - a hook
    """Give a batch norm the statistics of what comes in, the variance of all channels alike.

    One direction is most of what a photograph is, and random channels that see little of it would
    be nothing but noise, made as large as others.
    """
    axes = [axis for axis in range(given[0].ndim) if axis != 1]
    module.running_mean.copy_(given[0].mean(axes))
    module.running_var.fill_(given[0].var(axes).mean().clamp(min=1e-3))
