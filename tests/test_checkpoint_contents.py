"""What a checkpoint says beside its weights, in every container; which of its weights are taken."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fuzz import checkpoints as hostile
from fuzz import pickle_bombs as bombs
from safetensors.torch import save_file
from torch import nn

from deploykit.errors import CheckpointError
from deploykit.networks import checkpoint
from deploykit.networks.checkpoint import _pickles
from deploykit.networks.checkpoint._records import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Mode(enum.Enum):
    FAST = 2


class Options(dict[str, Any]):
    """As easydict's and mmcv's configurations: a dictionary with attributes."""


class Coder:
    def __init__(self) -> None:
        self.weights = (10.0, 10.0, 5.0, 5.0)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Conv2d(4, 2, 1)
        self.score_thresh, self._tops = 0.05, {"testing": 1000}
        self.cells = [torch.tensor([[-16.0, -16.0, 16.0, 16.0]])]
        self.coder = Coder()
        self.act = functools.partial(nn.functional.leaky_relu, negative_slope=0.1)
        self.register_buffer("grid", torch.arange(3.0), persistent=False)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3))
        self.head = Head()
        self.mean, self.names = [0.485, 0.456, 0.406], ["cat", "dog"]


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Detector().state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# arrays of numpy


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_arrays_gives_the_same_weights(
    path: Path, state: dict[str, Tensor], protocol: int
) -> None:
    arrays = {name: value.numpy() for name, value in state.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol))
    loaded = checkpoint.load(path)
    assert_same(loaded.state, state)
    assert loaded.facts["__author__"] == "zoo"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "i1", "u1", "i8", "?"])
def test_every_type_and_order_of_an_array_is_read(path: Path, protocol: int, kind: str) -> None:
    values = (np.arange(24).reshape(2, 3, 4) % 7).astype(kind)
    given = {
        "c": values,
        "f": np.asfortranarray(values),
        "part": values[:, ::2],
        "one": values[0, 0, 0, None],
    }
    path.write_bytes(pickle.dumps(given, protocol))
    found = checkpoint.load(path).state
    for name, value in given.items():
        assert np.array_equal(found[name].numpy(), value.astype(value.dtype.newbyteorder("="))), (
            name
        )


def test_the_bytes_that_python_2_wrote_as_text_are_read(path: Path) -> None:
    values = np.array([1.5, -2.0], "<f4")
    quoted = "".join(f"\\x{byte:02x}" for byte in values.tobytes()).encode()
    content = (
        b"(dp0\nS'w'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\n"
        b"S'b'\np5\ntp6\nRp7\n(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\nRp12\n"
        b"(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS'" + quoted + b"'\np15\ntp16\nbs."
    )
    assert np.array_equal(pickle.loads(content, encoding="latin1")["w"], values)
    path.write_bytes(content)
    assert checkpoint.load(path).state["w"].tolist() == [1.5, -2.0]


def test_arrays_that_hold_no_numbers_are_no_weights(path: Path) -> None:
    odd = {"names": np.array(["a", "b"]), "objects": np.array([{}, None], object)}
    path.write_bytes(pickle.dumps({**odd, "w": np.ones(2, np.float32)}))
    assert list(checkpoint.load(path).state) == ["w"]


# containers


def test_a_plain_pickle_of_tensors_is_read(path: Path, state: dict[str, Tensor]) -> None:
    path.write_bytes(pickle.dumps(state))
    assert_same(checkpoint.load(path).state, state)


@pytest.mark.filterwarnings("ignore")
def test_the_tar_of_the_first_torch_is_read_as_torch_reads_it(path: Path) -> None:
    body = b"\x80\x02}X\x01\0\0\0wX\x01\0\0\x008Qs."
    path.write_bytes(hostile.tarred(body))
    expected = torch.load(path, weights_only=False)  # our own bytes
    assert_same(checkpoint.load(path).state, dict(expected))


@pytest.mark.filterwarnings("ignore")
def test_views_of_old_storages_are_read(path: Path) -> None:
    view = bombs.text("v") + b"K\x02K\x03\x87tQ"
    storage = bombs.STORAGE.replace(b"tQ", view)
    tensor = bombs.tensor((3,), (1,)).replace(bombs.STORAGE, storage)
    path.write_bytes(hostile.stream(b"\x80\x02}" + bombs.text("w") + tensor + b"s."))
    expected = torch.load(path, weights_only=False)  # our own bytes
    assert expected["w"].tolist() == [2.0, 3.0, 4.0]
    assert_same(checkpoint.load(path).state, expected)


@pytest.mark.parametrize("name", ["last.ckpt", "m.pth.tar", "w.bin", "m.pkl", "m.onnx", "m"])
def test_the_name_of_a_file_says_nothing(
    tmp_path: Path, state: dict[str, Tensor], name: str
) -> None:
    for old in (False, True):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not old)
        assert_same(checkpoint.load(tmp_path / name).state, state)


# what is kept beside the weights


def test_values_of_every_harmless_kind_are_kept_as_plain_ones(
    path: Path, state: dict[str, Tensor]
) -> None:
    beside = {
        "epoch": np.float64(3),
        "best": np.int32(7),
        "args": argparse.Namespace(lr=0.1, out=Path("runs/exp1")),
        "mode": Mode.FAST,
        "options": Options(lr=1, steps=[1, 2]),
        "rng": np.random.default_rng(0),
        "old_rng": np.random.RandomState(0).get_state(),
        "loss": functools.partial(nn.functional.mse_loss, reduction="sum"),
        "anchors": np.array([[1, 2]]),
        "made": collections.OrderedDict(a=collections.deque([1, 2])),
        "device": torch.device("cuda:0"),
        "size": torch.Size([2, 3]),
        "set": {1},
        "type": Mode,
    }
    torch.save({"model": state, **beside}, path)
    facts = checkpoint.load(path).facts
    here = Mode.__module__
    assert (facts["epoch"], facts["best"]) == (3.0, 7)
    assert facts["args"] == {"class": "argparse.Namespace", "lr": 0.1, "out": "runs/exp1"}
    assert facts["mode"] == {"class": f"{here}.Mode", "arguments": [2]}
    assert facts["options"] == {"class": f"{here}.Options", "lr": 1, "steps": [1, 2]}
    assert facts["loss"]["class"] == "functools.partial"
    assert facts["anchors"] == [[1, 2]]
    assert facts["made"] == {"a": [1, 2]}
    assert (facts["size"], facts["set"], facts["type"]) == ([2, 3], [1], f"{here}.Mode")
    assert "rng" in facts
    assert "old_rng" in facts


def test_nothing_that_is_kept_was_imported(path: Path, state: dict[str, Tensor]) -> None:
    name = "a_package_that_is_nowhere"
    call = b"c" + name.encode() + b".deep\nmake\nX\x01\0\0\0a\x85R"
    path.write_bytes(hostile.zipped(bombs.state(call)))
    loaded = checkpoint.load(path)
    assert loaded.facts["extra"] == {"class": f"{name}.deep.make", "arguments": ["a"]}
    assert not any(module.startswith(name) for module in sys.modules)
    del state


def test_metadata_of_safetensors_are_facts(path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, path, {"format": "pt", "epoch": "3"})
    loaded = checkpoint.load(path)
    assert_same(loaded.state, state)
    assert loaded.facts == {"__metadata__": {"format": "pt", "epoch": "3"}}
    assert (loaded.place, loaded.notes) == ("", ())


def test_settings_of_a_pickled_module_are_kept_by_their_place(path: Path) -> None:
    torch.save({"model": Detector()}, path)
    loaded = checkpoint.load(path)
    head, here = loaded.modules["head"], Detector.__module__
    assert loaded.kind == loaded.modules[""].kind == f"{here}.Detector"
    assert loaded.modules[""].values["mean"] == [0.485, 0.456, 0.406]
    assert loaded.modules["body.1"].kind == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert loaded.modules["body.1"].values["eps"] == 1e-3
    assert loaded.modules["body.0"].values["kernel_size"] == [3, 3]
    assert head.values["score_thresh"] == 0.05
    assert head.values["_tops"] == {"testing": 1000}
    assert head.values["cells"] == [[[-16.0, -16.0, 16.0, 16.0]]]
    assert head.values["grid"] == [0.0, 1.0, 2.0]
    assert loaded.modules["head.coder"].kind == f"{here}.Coder"
    assert loaded.modules["head.coder"].values["weights"] == [10.0, 10.0, 5.0, 5.0]
    assert loaded.modules["head.act"].kind == "functools.partial"
    assert loaded.class_names == ("cat", "dog")
    assert not any(
        "_modules" in m.values or "training" in m.values for m in loaded.modules.values()
    )


def test_places_follow_the_names_of_the_weights(path: Path) -> None:
    torch.save(Wrapper(Detector()), path)
    loaded = checkpoint.load(path)
    assert loaded.modules["head"].values["score_thresh"] == 0.05
    assert "head.logits.weight" in loaded.state
    assert [m.kind.rpartition(".")[2] for m in loaded.around] == ["Wrapper"]
    assert loaded.kind == f"{Wrapper.__module__}.Wrapper"
    assert loaded.place == "module"


def test_a_state_dict_says_nothing_of_modules(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": state}, path)
    loaded = checkpoint.load(path)
    assert (dict(loaded.modules), loaded.around, loaded.kind) == ({}, (), None)


# which weights are the network's


def under(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def copy_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 1 for name, value in state.items()}


OFFERED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "detector": under("detector."),
    "net": under("net."),
    "two": under("module.net."),
    "loss beside": lambda s: {**under("model.")(s), "loss_fn.weight": torch.ones(2)},
    "loss among": lambda s: {**s, "criterion.empty_weight": torch.ones(2)},
    "copy": lambda s: {**under("net_ema.")(s), **under("net.")(copy_of(s))},
    "student": lambda s: {**under("student.")(s), "teacher.other": torch.ones(2)},
    "teacher": lambda s: {**under("student.")(copy_of(s)), **under("teacher.")(s)},
    "camel": lambda s: {**under("modelTeacher.")(s), **under("modelStudent.")(copy_of(s))},
    "own key": lambda s: {"generator_weights": s, "step": 3},
    "in parts": lambda s: {
        "body": {k[5:]: v for k, v in s.items() if k.startswith("body.")},
        "head": {k[5:]: v for k, v in s.items() if k.startswith("head.")},
    },
    "list": lambda s: [s, 3],
    "optimizer": lambda s: {"optimizer": {"state": copy_of(s)}, "weights_here": s},
    "FSDP": lambda s: {k.replace("head.", "head._fsdp_wrapped_module."): v for k, v in s.items()},
}


@pytest.mark.parametrize("layout", OFFERED)
def test_the_network_is_among_what_a_file_offers(
    path: Path, state: dict[str, Tensor], layout: str
) -> None:
    torch.save(OFFERED[layout](state), path)
    offered = list(checkpoint.candidates(path))
    same = [c for c in offered if sorted(c.state) == sorted(state)]
    assert_same(same[0].state, state)
    assert layout == "optimizer" or same[0].notes
    assert len({id(c) for c in offered}) == len(offered)


def test_what_is_no_copy_and_no_loss_is_never_left_out(
    path: Path, state: dict[str, Tensor]
) -> None:
    torch.save({**under("model.")(state), "mean": torch.ones(3)}, path)
    assert all("mean" in c.state for c in checkpoint.candidates(path))
    torch.save({**under("backbone.")(state), "neck.w": torch.ones(3)}, path)
    assert all("neck.w" in c.state for c in checkpoint.candidates(path))


def test_a_tensor_beside_the_weights_that_cannot_be_one_stops_nothing(
    path: Path, state: dict[str, Tensor]
) -> None:
    torch.save({"model": state, "mask": torch.eye(2).to_sparse()}, path)
    assert sorted(checkpoint.load(path).state) == sorted(state)
    assert len(list(checkpoint.candidates(path))) >= 1
    nan = {name: value * torch.nan for name, value in state.items()}
    torch.save({"ema": {"decay": torch.ones(1)}, "model": nan}, path)
    with pytest.raises(CheckpointError, match="hold NaN or infinity"):
        list(checkpoint.candidates(path))


def test_words_are_whole_words(path: Path) -> None:
    named = {"semantic_head.w": torch.ones(1), "glossary.w": torch.ones(1), "b.w": torch.ones(2)}
    torch.save(named, path)
    assert [sorted(c.state) for c in checkpoint.candidates(path)] == [sorted(named)]


# bounds


def test_a_sample_of_hostile_files_takes_little_and_runs_nothing(tmp_path: Path) -> None:
    """A third of the generator's files, in a process that may take 1.5 GB more than it starts with.

    `python -m tests.fuzz` goes through all of them.
    """
    code = """
    import resource, sys, time
    from pathlib import Path
    from fuzz.checkpoints import checkpoints
    from deploykit.errors import CheckpointError
    from deploykit.networks import checkpoint
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 29), used + (3 << 29)))
    wrong, slowest = [], 0.0
    for i, (name, content) in enumerate(checkpoints(mutants=3, thorough=False)):
        if i % 3:
            continue
        Path("x.pth").write_bytes(content)
        start = time.process_time()
        try:
            for _ in checkpoint.candidates(Path("x.pth")):
                pass
        except CheckpointError as error:
            if len(str(error)) > 3000:
                wrong.append(f"{name}: {str(error)[:80]}")
        except BaseException as error:
            wrong.append(f"{name}: {error!r}"[:300])
        slowest = max(slowest, time.process_time() - start)
    print(f"{i} {slowest:.1f} {wrong}")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    count, slowest, wrong = run.stdout.split(maxsplit=2)
    assert wrong.strip() == "[]"
    assert int(count) > 200
    assert float(slowest) < 20
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_what_a_pickle_copies_is_bounded() -> None:
    pairs = b"](" + b"K\x01N\x86" * 200 + b"eq\0"
    call = b"ccollections\nOrderedDict\nq\x010"
    content = b"\x80\x02" + pairs + call + b"h\x01h\0\x85R" * 100 + b"."
    with pytest.raises(FormatError, match="more objects than it has bytes"):
        _pickles.read(io.BytesIO(content), len(content))


def test_an_integer_too_long_to_print_is_kept_as_a_record() -> None:
    content = b"\x80\x02\x8b" + struct.pack("<i", 2000) + bytes(1999) + b"\x01."
    assert str(_pickles.read(io.BytesIO(content), len(content)).of) == "builtins.int"


def test_memory_for_tensors_is_counted_before_it_is_taken(path: Path) -> None:
    body = b"\x80\x02}" + bombs.text("w") + bombs.tensor((1 << 33,), (0,)) + b"s."
    path.write_bytes(hostile.zipped(body))
    with pytest.raises(CheckpointError, match="would take more than 4 times"):
        checkpoint.load(path)
