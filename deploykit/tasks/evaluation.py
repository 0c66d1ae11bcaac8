"""Task metrics: COCO average precision of any backend's forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.data import samples
from deploykit.errors import DataError, ModelError, OptionError
from deploykit.tasks.coco import Results, Scores, coco_ap, require, shortened
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.data.preprocess import Floats, Preprocess
    from deploykit.data.sources import Dataset
    from deploykit.tasks.detections import Decode
    from deploykit.values import Json, Progress

    Forward = Callable[[Floats], Mapping[str, Floats]]

__all__ = ["Scores", "category_ids", "coco_ap", "evaluate"]


@dataclass(frozen=True)
class Contract:
    """How a model is fed and its outputs are read."""

    preprocess: Preprocess
    class_names: Sequence[str]
    decode: Decode


def evaluate(  # noqa: PLR0913 - three nouns and three independent switches
    run: Forward,
    dataset: Dataset,
    contract: Contract,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    progress: Progress = silent,
) -> Scores:
    """Return the scores of `run` (images float32[B, 3, H, W] -> outputs) on a data set.

    Only the images that were run count, see `samples.choose` for `limit`. Masks are scored where
    the model has them and the truth too, keypoints likewise; what is kept of a mask is its run
    lengths.

    Raises: OptionError for a set without truth; DataError where the truth's classes are not the
        model's or an image is unreadable; BackendError without faster-coco-eval.
    """
    if dataset.truth is None:
        raise OptionError(
            f"{dataset.name} has images but no truth to compare with",
            expected="a source with annotations, such as coco:DIR or shapes:",
        )
    require()
    truth = dataset.truth()
    categories = category_ids(truth, contract.class_names)
    scored = Results(truth, categories)
    batches = samples.batches(
        dataset, contract.preprocess, batch_size, limit=limit, progress=progress
    )
    for batch in batches:
        results = contract.decode(run(batch.images), batch.geometries)
        if len(results) != len(batch.names):
            raise ModelError(
                f"the model returned results for {len(results)} images",
                expected=f"{len(batch.names)}, one per image of the batch",
            )
        for name, found, place in zip(batch.names, results, batch.geometries, strict=True):
            scored.add(name, found, (place.height, place.width))
    return scored.scores()


def category_ids(truth: Json, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the truth's category id for each class of a model.

    By name where the names are the same set; otherwise by position among the sorted ids, provided
    that the counts agree and no shared name changes its place.

    Raises: DataError naming the differences.
    """
    known = sorted((int(c["id"]), str(c["name"])) for c in truth["categories"])
    names = [name for _, name in known]
    if sorted(names) == sorted(class_names) and len(set(names)) == len(names):
        ids = {name: number for number, name in known}
        return tuple(ids[name] for name in class_names)
    moved = [
        name for i, name in enumerate(class_names) if name in names and names[i : i + 1] != [name]
    ]
    if len(names) == len(class_names) and not moved:
        return tuple(number for number, _ in known)
    raise DataError(
        f"the truth has {len(names)} categories, the model {len(class_names)} classes; "
        + _differences(names, class_names, moved),
        expected="the same class names, or as many in the same order",
        fix="evaluate on the data set the model was trained for",
    )


def _differences(names: Sequence[str], class_names: Sequence[str], moved: Sequence[str]) -> str:
    groups = {
        "only in the truth": sorted(set(names) - set(class_names)),
        "only in the model": sorted(set(class_names) - set(names)),
        "in another place": moved,
    }
    return "; ".join(f"{label}: {shortened(group)}" for label, group in groups.items() if group)
