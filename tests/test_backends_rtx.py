from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser
import pytest

from deploykit import backends
from deploykit.backends import BuildOptions, _builder_process, _plan_text, tensorrt_rtx
from deploykit.backends._trt import Request
from deploykit.errors import (
    BackendError,
    InputError,
    ModelError,
    OptionError,
    OutputError,
    ProofError,
)
from deploykit.files import artifacts
from deploykit.recipes import opened

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends import Built

HERE = tensorrt_rtx.availability()
needs_builder = pytest.mark.skipif(not HERE.builds, reason=HERE.reason)
needs_no_gpu = pytest.mark.skipif(HERE.runs, reason="this machine has a GPU")


def build(model: Path, *sms: str, **options: Any) -> Built:
    return tensorrt_rtx.build(
        opened.read(model), model.with_suffix(".engine"), BuildOptions(sms=sms, **options)
    )


def weighted(built: Built) -> dict[str, tuple[str, str]]:
    return {n.name: (n.op, n.precision) for n in built.layers if n.op in ("Conv", "Gemm")}


@pytest.fixture(scope="module")
def int8(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Built]:
    if not HERE.builds:
        pytest.skip(HERE.reason)
    model = toy(quantized=True).save(tmp_path_factory.mktemp("int8") / "toy.onnx")
    return model, build(model, "80", "86", "89", "120")


def test_an_int8_graph_becomes_int8_layers_from_sm80_on(int8: tuple[Path, Built]) -> None:
    model, built = int8
    assert weighted(built) == {
        **dict.fromkeys(("stem", "block1", "block2", "head"), ("Conv", "int8")),
        "fc": ("Gemm", "int8"),
    }
    assert sum(layer.macs for layer in built.layers) == 1_421_632
    plan = model.with_suffix(".engine").read_bytes()
    assert _plan_text.targets(plan) == ("80", "86", "89", "120")


def test_the_native_log_and_the_profile_are_kept(int8: tuple[Path, Built]) -> None:
    log = int8[1].log
    assert log.startswith(
        "profile of images: float32[n, 3, 32, 32] (default): "
        "min 1x3x32x32, opt 1x3x32x32, max 32x3x32x32\n"
    )
    assert "Engine generation completed" in log


def test_an_engine_is_inspected_from_its_file_alone(int8: tuple[Path, Built]) -> None:
    layers = tensorrt_rtx.inspect(int8[0].with_suffix(".engine"))
    assert [n.precision for n in layers if n.op == "corrltn"] == ["int8"] * 4
    assert [n.precision for n in layers if n.op == "fully_connected"] == ["int8"]
    assert all(layer.macs == 0 for layer in layers)


def test_with_its_onnx_beside_it_an_engine_is_inspected_by_onnx_node(
    int8: tuple[Path, Built], tmp_path: Path
) -> None:
    model, built = int8
    for path in (model, model.with_suffix(".engine")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    engine = tmp_path / "toy.engine"
    artifacts.describe(engine, made_by={}, parents=opened.read(tmp_path / "toy.onnx").origin())
    assert tensorrt_rtx.inspect(engine) == built.layers


@needs_builder
def test_sm75_gets_an_fp16_engine(toy: Any, tmp_path: Path) -> None:
    built = build(toy(half=True).save(tmp_path / "toy.onnx"), "75")
    assert {precision for _, precision in weighted(built).values()} == {"fp16"}


@needs_builder
@pytest.mark.parametrize("sms", [("75",), ("86", "sm75"), ("7.5", "120")])
def test_int8_for_sm75_is_refused_before_the_build(
    toy: Any, tmp_path: Path, sms: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(quantized=True).save(tmp_path / "toy.onnx")
    monkeypatch.setattr(_builder_process, "build", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(OptionError, match="INT8 for SM75 is not possible") as caught:
        build(model, *sms)
    assert "FP16 model for SM75" in caught.value.fix
    assert not model.with_suffix(".engine").exists()


@needs_builder
def test_fp32_matrix_products_for_sm75_are_refused_by_name(toy: Any, tmp_path: Path) -> None:
    model = toy().save(tmp_path / "toy.onnx")
    with pytest.raises(OptionError, match=r"SM75 has no FP32 matrix product.*fc"):
        build(model, "75")
    assert build(toy(classify=False).save(tmp_path / "convs.onnx"), "75").layers


@needs_builder
def test_the_builder_itself_refuses_what_is_refused_for_it(toy: Any, tmp_path: Path) -> None:
    """The early refusals repeat facts of the builder: it must still agree with them."""
    for name, made in {"f": toy(), "q": toy(quantized=True, classify=False)}.items():
        made.save(tmp_path / f"{name}.onnx")
    shapes = {"images": ((1, 3, 32, 32),) * 3}

    def request(name: str) -> Request:
        path = str(tmp_path / name)
        return Request("tensorrt_rtx", f"{path}.onnx", f"{path}.engine", ("75",), shapes)

    with pytest.raises(BackendError, match="FP32 GEMM is not supported") as caught:
        _builder_process.build(request("f"))
    assert "FP16" in caught.value.fix
    _builder_process.build(request("q"))
    kernels = _plan_text.kernels((tmp_path / "q.engine").read_bytes())
    assert {kernel.precision for kernel in kernels if kernel.weighted} == {"fp32"}


@needs_builder
def test_a_quantized_layer_that_comes_out_in_float_is_an_error_and_no_engine_is_left(
    toy: Any, tmp_path: Path
) -> None:
    made = toy(quantized=True, classify=False)
    made.output = made.weighted("ConvTranspose", "up", made.output, (32, 8, 2, 2), strides=[2, 2])
    # Per-channel scales of a transposed convolution lie on axis 1; one scale for all here.
    for node in made.nodes[-3:-1]:
        node.ClearField("attribute")
    for tensor in made.weights:
        if tensor.name in ("up.w.scale", "up.w.zero"):
            del tensor.dims[:]
            tensor.raw_data = tensor.raw_data[: 4 if tensor.name.endswith("scale") else 1]
    del made.nodes[-1].input[2]
    model = made.save(tmp_path / "up.onnx")
    with pytest.raises(ProofError, match=r"1 of 5 quantized layers in float: up \(ConvTranspose"):
        build(model, "86")
    assert [path.name for path in tmp_path.iterdir()] == ["up.onnx"]


@needs_builder
@pytest.mark.parametrize(
    ("sm", "message"),
    [
        ("70", "Volta was dropped"),
        ("90", "use the full TensorRT"),
        ("87", "unknown GPU or compute capability '87'"),
        ("t5", "unknown GPU or compute capability 't5'"),
    ],
)
def test_a_target_it_does_not_have_is_refused_with_the_reason(
    toy: Any, tmp_path: Path, sm: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        build(toy(classify=False).save(tmp_path / "toy.onnx"), sm)


@needs_builder
@needs_no_gpu
def test_without_a_target_and_a_gpu_it_asks_for_one(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no target GPU given") as caught:
        build(toy().save(tmp_path / "toy.onnx"))
    assert "--sm 86" in caught.value.fix


@needs_builder
def test_a_timing_cache_is_refused_for_it_would_do_nothing(toy: Any, tmp_path: Path) -> None:
    model = toy().save(tmp_path / "toy.onnx")
    with pytest.raises(OptionError, match="no timing cache"):
        build(model, "86", timing_cache=tmp_path / "cache")


@needs_builder
def test_an_op_the_parser_refuses_is_named_with_its_node(toy: Any, tmp_path: Path) -> None:
    made = toy()
    made.nodes[-2].op_type = "NonZero"
    model = made.save(tmp_path / "odd.onnx")
    with pytest.raises(BackendError) as caught:
        build(model, "86")
    assert "cannot read odd.onnx: node 'flat' (NonZero)" in caught.value.found
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]


@needs_builder
@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"words\n" * 99, "text"), (None, "no such file")]
)
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        build(path, "86")


@needs_builder
def test_an_output_that_cannot_be_written_is_one_error(toy: Any, tmp_path: Path) -> None:
    model = toy().save(tmp_path / "toy.onnx")
    with pytest.raises(OutputError):
        tensorrt_rtx.build(
            opened.read(model), tmp_path / "no" / "toy.engine", BuildOptions(sms=("86",))
        )


@needs_builder
def test_a_workspace_limit_reaches_the_builder(toy: Any, tmp_path: Path) -> None:
    model = toy(classify=False).save(tmp_path / "toy.onnx")
    assert build(model, "86", workspace=64 << 20).layers


@pytest.mark.parametrize("content", [b"", b"vtrt" + bytes(100), b"neither\n"])
def test_a_file_that_is_no_engine_cannot_be_inspected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.engine"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"no engine|unknown form"):
        tensorrt_rtx.inspect(path)
    with pytest.raises(InputError, match="cannot read"):
        tensorrt_rtx.inspect(tmp_path / "absent.engine")


@needs_no_gpu
@needs_builder
def test_running_an_engine_without_a_gpu_says_why_and_what_would_work(
    int8: tuple[Path, Built],
) -> None:
    with pytest.raises(BackendError, match=r"cannot run toy\.engine here") as caught:
        tensorrt_rtx.open_session(int8[0].with_suffix(".engine"))
    assert "onnxruntime" in caught.value.fix
    with pytest.raises(InputError, match="no such file"):
        tensorrt_rtx.open_session(int8[0].with_suffix(".absent"))


def test_without_the_package_it_says_what_to_install(
    toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    toy().save(tmp_path / "m.onnx")
    monkeypatch.setattr(tensorrt_rtx, "_PACKAGE", "tensorrt-rtx-cu99")
    here = tensorrt_rtx.availability()
    assert (here.builds, here.runs) == (False, False)
    with pytest.raises(BackendError, match="tensorrt-rtx-cu99 is not installed") as caught:
        tensorrt_rtx.build(opened.read(tmp_path / "m.onnx"), tmp_path / "m.engine", BuildOptions())
    assert caught.value.fix == "`pip install tensorrt-rtx-cu13`"


@needs_builder
def test_a_build_imports_no_torch() -> None:
    code = (
        "import sys; from deploykit import backends; backends.load('tensorrt_rtx');"
        "import deploykit.backends._builder_process as _; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def plugin_model(tmp_path: Path, domain: str) -> Path:
    text = f"""<ir_version: 9, opset_import: ["" : 19, "{domain}" : 1]>
        g (float[1, 4] x) => (float[1, 4] y) {{
            y = {domain}.DKNothing<plugin_namespace = "{domain}">(x)
        }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "plugin.onnx")
    return tmp_path / "plugin.onnx"


@needs_builder
def test_a_missing_plugin_is_named_and_does_not_abort(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"node 0 \(DKNothing\).*Plugin not found"):
        build(plugin_model(tmp_path, "elsewhere"), "86")
    with pytest.raises(ModelError, match="deploykit::DKNothing"):
        build(plugin_model(tmp_path, "deploykit"), "86")


def stand_in(tmp_path: Path, script: str) -> str:
    """Return a program that takes the place of the interpreter that the builder runs in."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


DIES = "echo '[I] step 2' >&2; "


@needs_builder
@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (f"{DIES} kill -9 $$", BackendError, "was ended by SIGKILL while it built toy.onnx"),
        (f"{DIES} kill -11 $$", BackendError, "was ended by SIGSEGV"),
        (
            f"{DIES} exit 3",
            BackendError,
            "ended with exit status 3 while it built toy.onnx\n[I] step 2",
        ),
        (f"{DIES} echo no json", BackendError, "ended with exit status 0"),
        (
            f'ulimit -f 64; exec {sys.executable} "$@"',
            OutputError,
            "toy.engine: File too large",
        ),
    ],
    ids=["killed", "segfault", "exit", "no answer", "disk full"],
)
def test_a_builder_that_dies_or_cannot_write_is_one_error_and_leaves_nothing(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    script: str,
    error: type[Exception],
    message: str,
) -> None:
    model = request.getfixturevalue("toy")(classify=False).save(tmp_path / "toy.onnx")
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(error, match=re.escape(message)) as caught:
        build(model, "86")
    assert ("[I] step 2" in str(caught.value)) == (DIES in script)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["python", "toy.onnx"]


@needs_builder
def test_the_builder_finds_the_library_under_the_name_that_the_parser_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = _builder_process.runtime_library("tensorrt_rtx")
    assert library is not None
    assert library.name.startswith("libtensorrt_rtx.so.")
    script = 'readlink "${LD_LIBRARY_PATH%%:*}/libtensorrt_rtx.so" >&2; exit 3'
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with pytest.raises(BackendError, match=re.escape(str(library))):
        _builder_process.build(Request("tensorrt_rtx", "m.onnx"))


@needs_builder
def test_ctrl_c_ends_the_builder_and_leaves_nothing(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(classify=False).save(tmp_path / "toy.onnx")
    script = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))

    def interrupt() -> None:
        while not (tmp_path / "pid").is_file():
            time.sleep(0.01)
        time.sleep(0.3)  # until the build waits for its process
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        build(model, "86")
    watcher.join()
    assert not [path for path in tmp_path.iterdir() if "engine" in path.name]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@needs_builder
def test_a_builder_that_was_started_ahead_is_the_one_that_builds(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy(classify=False).save(tmp_path / "toy.onnx")
    with backends.ahead("tensorrt_rtx"), backends.ahead("tensorrt_rtx"):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
        build(model, "86")
        with pytest.raises(BackendError, match="cannot start the builder"):
            build(model, "86")  # it is used up


@needs_builder
def test_a_builder_that_is_not_needed_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"echo $$ > {tmp_path}/pid; exec sleep 60"
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    with backends.ahead("tensorrt_rtx"):
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("name", ["onnxruntime", "no_such_backend"])
def test_nothing_is_started_for_a_backend_without_a_builder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with backends.ahead(name):
        pass


def test_a_builder_that_cannot_be_started_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(BackendError, match="cannot start the builder: No such file"):
        _builder_process.build(Request("tensorrt_rtx", "m.onnx"))


def test_a_module_that_cannot_be_imported_is_one_error() -> None:
    with pytest.raises(BackendError, match="no_such_trt cannot be imported"):
        _builder_process.build(Request("no_such_trt", "m.onnx"))
