"""Which weights of a file become the network, and what is said where none can."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.cli import COMMANDS, parsing
from deploykit.errors import CheckpointError, OptionError
from deploykit.networks import loading
from deploykit.networks.loading import NetworkOptions
from deploykit.recipes import metadata
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

State = dict[str, Tensor]


@pytest.fixture
def state(checkpoint: Path) -> State:
    found: State = torch.load(checkpoint, weights_only=True)["model"]
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


def other(state: State) -> State:
    return {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "detector": (lambda s: under("detector.", s), "'detector'"),
    "wrapped twice": (lambda s: {"state_dict": under("module.net.", s)}, "'net'"),
    "with a loss": (lambda s: {**under("model.", s), "loss.w": torch.ones(1)}, "'loss'"),
    "loss among them": (lambda s: {**s, "criterion.w": torch.ones(1)}, "'criterion'"),
    "an average beside": (
        lambda s: {**under("net.", other(s)), **under("net_ema.", s)},
        "'net_ema', not 'net'",
    ),
    "another network first": (
        lambda s: {"ema": {"decoder.w": torch.ones(2)}, "model": s},
        "'model'",
    ),
    "a teacher beside": (lambda s: {"student": other(s), "teacher": s}, "not from 'student'"),
    "two of one kind": (lambda s: {"best": s, "last": other(s)}, "not from 'last'"),
    "an average without names": (
        lambda s: {"ema": {"decay": 0.9, "shadow_params": [*s.values()]}, "model": s},
        "'model', not from 'ema'",
    ),
    "an average with counters": (
        lambda s: {
            **under("online_model.", other(s)),
            **under("ema_model.", s),
            **{name: torch.tensor(1) for name in ("initted", "step")},
        },
        "'ema_model', not 'online_model', 'initted', 'step'",
    ),
    "counters of a wrapper": (
        lambda s: {**under("module.", s), "steps": torch.tensor(3)},
        "left aside, as counters of a wrapper: 'steps'",
    ),
    "as mmengine exchanges them": (
        lambda s: {
            "state_dict": s,
            "message_hub": {},
            "ema_state_dict": {**under("module.", other(s)), "steps": torch.tensor(3)},
        },
        "'state_dict', the moving average, not from 'ema_state_dict'",
    ),
    "an average that does not fit": (
        lambda s: {"ema": {**s, "embedding.w": torch.ones(1)}, "model": s},
        "the weights under 'ema' not used",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_that_a_recipe_knows_are_taken_and_named(
    path: Path, state: State, layout: str
) -> None:
    save, said = LAYOUTS[layout]
    torch.save(save(state), path)
    network = loading.load_network(path, NetworkOptions())
    assert said in "; ".join(network.notes)
    found = network.module.state_dict()
    assert all(torch.equal(found[k], v) for k, v in state.items())


def test_weights_beside_the_network_that_nobody_knows_are_refused_by_name(
    path: Path, state: State
) -> None:
    torch.save({**state, "embedding.w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(embedding\.w\)") as caught:
        loading.load_network(path, NetworkOptions())
    assert "no variant of yolov6 has these weights" in caught.value.fix
    assert "--variant" not in caught.value.fix


def test_the_network_is_named_among_what_is_no_copy_of_it(path: Path, state: State) -> None:
    beside = {"train_acc.hits": torch.ones(2), "train_acc.all": torch.ones(2)}
    torch.save({"state_dict": {**under("net.", state), **beside}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of") as caught:
        loading.load_network(path, NetworkOptions())
    assert caught.value.fix == "save them: torch.save(model.net.state_dict(), FILE)"


def test_names_that_stand_twice_are_said(path: Path, state: State) -> None:
    torch.save(state, path)
    names = ("a", "b", "a", "c", "d", "e")
    network = loading.load_network(path, NetworkOptions(class_names=names))
    assert network.card.class_names == names
    assert "classes of one name: a" in network.notes


def test_images_of_one_channel_get_no_advice_that_cannot_help(path: Path, state: State) -> None:
    first = next(name for name, value in state.items() if value.ndim == 4 and value.shape[1] == 3)
    torch.save({**state, first: state[first][:, :1]}, path)
    with pytest.raises(CheckpointError) as caught:
        loading.load_network(path, NetworkOptions())
    assert "choose the variant" not in str(caught.value)


def test_another_familys_weights_are_told_from_the_one_that_was_named(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of repvgg") as caught:
        loading.load_network(checkpoint, NetworkOptions(recipe="repvgg"))
    assert caught.value.expected == "a checkpoint of yolov6, as this is one"
    assert caught.value.fix == "leave --recipe out"


def test_a_variant_that_is_another_is_an_error_that_lists_the_right_ones(checkpoint: Path) -> None:
    with pytest.raises((CheckpointError, OptionError)) as caught:
        loading.load_network(checkpoint, NetworkOptions(variant="v3n"))
    assert "pico" in str(caught.value)


@pytest.fixture
def foreign() -> Iterator[type[nn.Module]]:
    """A module of a package that is gone when the file is read."""
    names = ("far", "far.away", "far.away.tasks")
    for name in names:
        sys.modules[name] = types.ModuleType(name)

    def init(self: nn.Module) -> None:
        nn.Module.__init__(self)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3))

    made = type("DetectionModel", (nn.Module,), {"__init__": init, "__module__": names[-1]})
    sys.modules[names[-1]].DetectionModel = made  # type: ignore[attr-defined]  # made up here
    yield made
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 1}])
def test_the_class_of_a_pickled_network_that_nobody_knows_is_named(
    path: Path, foreign: type[nn.Module], wrap: Callable[[nn.Module], Any]
) -> None:
    torch.save(wrap(foreign()), path)
    with pytest.raises(
        CheckpointError, match=r"pickled far\.away\.tasks\.DetectionModel"
    ) as caught:
        loading.load_network(path, NetworkOptions())
    assert "write a recipe for this network" in caught.value.fix


# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["last.safetensors", "model.bin", "weights"])
def test_the_order_of_the_weights_and_the_name_of_the_file_do_not_count(
    name: str, state: State, tmp_path: Path, *, reverse: bool
) -> None:
    """A safetensors file holds its tensors in the order of their names."""
    ordered = {key: state[key].clone() for key in sorted(state, reverse=reverse)}
    if name.endswith(".safetensors"):
        save_file(ordered, str(tmp_path / name))
    else:
        torch.save(ordered, tmp_path / name)
    found = loading.load_network(tmp_path / name, NetworkOptions()).card
    assert (found.recipe, found.variant) == ("yolov6", "pico")


# --- protocols ------------------------------------------------------------------------------------


@pytest.fixture
def nano(path: Path) -> Path:
    torch.save(RECIPES.load("yolov6").build("v3n", 2, (640, 640)).state_dict(), path)
    return path


def test_a_named_protocol_is_in_the_card(nano: Path) -> None:
    usual = loading.load_network(nano, NetworkOptions()).card.preprocess
    named = loading.load_network(nano, NetworkOptions(protocol="evaluation-640")).card
    assert usual.limits is None
    assert named.preprocess == replace(usual, limits=(636, 636))
    properties: dict[str, str] = {}
    metadata.write(properties, named)
    assert metadata.read(properties) == named


def test_a_protocol_is_that_of_the_size_asked_for(nano: Path) -> None:
    options = NetworkOptions(
        protocol="evaluation-rect", input_size=(352, 352), canvases=((288, 352),)
    )
    found = loading.load_network(nano, options).card.preprocess
    assert found.sizes == ((352, 352), (288, 352))
    assert (found.limits, found.margin) == ((320, 320), 16)
    assert found.fit(480, 640).canvas == (288, 352)


def test_an_unknown_protocol_is_refused_with_those_there_are(nano: Path) -> None:
    with pytest.raises(OptionError) as caught:
        loading.load_network(nano, NetworkOptions(protocol="evaluation-rects"))
    assert "unknown protocol 'evaluation-rects'" in caught.value.found
    assert "evaluation, evaluation-640, evaluation-rect, inference" in caught.value.expected
    assert "evaluation-rect" in caught.value.fix


def test_a_network_without_protocols_says_so(checkpoint: Path) -> None:
    with pytest.raises(OptionError, match="has only one") as caught:
        loading.load_network(checkpoint, NetworkOptions(protocol="inference"))
    assert "leave --protocol out" in caught.value.fix


def test_the_help_page_names_every_protocol_of_every_recipe() -> None:
    page = parsing.page("export", COMMANDS["export"])
    recipes = {name: RECIPES.load(name) for name in RECIPES.shipped()}
    for name, recipe in recipes.items():
        for protocol in {p for v in recipe.variants.values() for p in v.protocols}:
            assert f"protocols of {name}" in page
            assert f"\n  {protocol} " in page
