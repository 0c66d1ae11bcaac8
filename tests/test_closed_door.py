"""Nothing that a file says decides which code runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from deploykit.errors import DeployError
from deploykit.files import artifacts
from deploykit.measuring.benchmarking import BenchOptions
from deploykit.networks.loading import NetworkOptions, load_network
from deploykit.pipeline import BenchPlan, EvalOptions, bench, build, evaluate, open_model

if TYPE_CHECKING:
    from pathlib import Path

EVIL = """
from pathlib import Path
Path(__file__).with_name("canary").touch()
from deploykit import RECIPES
"""
SOURCE = "shapes:count=2,size=96"
NAMES = ("evil.py", "./evil.py", "{folder}/evil.py", "evil", "../x/evil.py")


@pytest.fixture
def card(model: Path) -> Any:
    """The card of the test model as JSON."""
    properties = onnx.load(model).metadata_props
    return next(json.loads(entry.value) for entry in properties if entry.key == "deploykit")


def hostile(model: Path, folder: Path, card: Any) -> Path:
    """Return a copy of the test model with another card, beside `evil.py`."""
    (folder / "evil.py").write_text(EVIL)
    proto = onnx.load(model)
    for entry in proto.metadata_props:
        if entry.key == "deploykit":
            entry.value = json.dumps(card)
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("name", NAMES)
def test_a_card_that_names_a_file_runs_nothing(
    model: Path, card: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = hostile(model, tmp_path, {**card, "recipe": name.format(folder=tmp_path)})
    quick = BenchOptions(warmup_seconds=0, duration_seconds=0.01, min_iterations=1)
    with pytest.raises(DeployError, match=r"--recipe path/to/evil\.py|unknown recipe"):
        evaluate(path, EvalOptions(SOURCE))
    with pytest.raises(DeployError, match=r"--recipe path/to/evil\.py|unknown recipe"):
        bench([path], BenchPlan(quick, end_to_end=SOURCE))
    assert not (tmp_path / "canary").exists()


def test_a_sidecar_that_names_a_file_runs_nothing(model: Path, card: Any, tmp_path: Path) -> None:
    from deploykit.backends import BuildOptions

    engine = tmp_path / "m.engine"
    build(model, engine, "onnxruntime", BuildOptions())
    (tmp_path / "evil.py").write_text(EVIL)
    sidecar = artifacts.sidecar(engine)
    said = json.loads(sidecar.read_text())
    said["made_by"]["card"] = {**card, "recipe": str(tmp_path / "evil.py")}
    engine_bytes = b"ftrt" + engine.read_bytes()
    for content in (engine.read_bytes(), engine_bytes):  # an ONNX file, and what claims to be none
        engine.write_bytes(content)
        said["sha256"] = artifacts.sha256(engine)
        sidecar.write_text(json.dumps(said))
        with contextlib.suppress(DeployError):
            evaluate(engine, EvalOptions(SOURCE))
    assert not (tmp_path / "canary").exists()


def test_a_recipe_of_the_users_own_runs_where_the_user_names_it(
    model: Path, card: Any, checkpoint: Path, tmp_path: Path
) -> None:
    from deploykit.recipes.recipe import RECIPES

    own = tmp_path / "mine.py"
    shutil.copy(RECIPES.shipped()["yolov6"], own)
    network = load_network(checkpoint, NetworkOptions(recipe=str(own)))
    assert network.card.recipe == "mine.py", "without the folders of the machine it was made on"
    path = hostile(model, tmp_path, {**card, "recipe": network.card.recipe})
    with pytest.raises(DeployError, match=r"--recipe path/to/mine\.py"):
        open_model(path).task()
    shipped = evaluate(model, EvalOptions(SOURCE))
    assert evaluate(path, EvalOptions(SOURCE, recipe=str(own))).metrics == shipped.metrics
