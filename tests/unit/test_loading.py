"""Guards that cannot be loaded, and with which sentence. That it gets out of a server: test_serve, test_gen."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from qwen3guard_apps.doctor import machine_checks
from qwen3guard_apps.doctor.export_checks import repository_checks
from qwen3guard_apps.doctor.findings import run_checks
from qwen3guard_contract import errors
from qwen3guard_contract.log_output import LOG_VARIABLE
from qwen3guard_contract.manifest import Engine, Manifest, Profile
from qwen3guard_contract.parameters import GEN_PARAMETERS, STREAM_PARAMETERS, set_variables
from qwen3guard_runtime.engine.host import memory_bytes
from qwen3guard_runtime.gen.models import GenGuardModel, GuardTokenizerModel
from qwen3guard_runtime.parameters import Parameters
from qwen3guard_runtime.stream.models import StreamGuardModel
from qwen3guard_runtime.triton.loading import parameters
from qwen3guard_server.footprint import Footprint
from qwen3guard_server.server import EmbeddedServer, Fault
from qwen3guard_server.server_log import NO_REASON, reason
from qwen3guard_server.settings import ServerSettings


def load(repository: Path, **parameters: str) -> StreamGuardModel:
    return StreamGuardModel(repository / "stream_guard" / "1", STREAM_PARAMETERS | parameters)


def test_a_budget_below_one_stream(repository: Path) -> None:
    with pytest.raises(errors.OverBudget, match="KV budget of 1000 bytes"):
        load(repository, kv_budget_bytes="1000")


def test_a_budget_beyond_the_memory(repository: Path) -> None:
    with pytest.raises(errors.InvalidParameter, match=r"kv_budget_bytes is .*; .* from 0 to \d+"):
        load(repository, kv_budget_bytes=str(memory_bytes() + 1))


def test_wrong_thresholds(repository: Path) -> None:
    sentence = r"^The parameter thresholds is wrong\. The threshold 'default' must be a number from 0 to 1\."
    with pytest.raises(errors.GuardError, match=sentence):
        load(repository, thresholds='{"default": 2}')


def test_a_truncated_graph_and_a_missing_one(copy: Path) -> None:
    graph = copy / "stream_guard" / "1" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.CorruptFile, match=r"model\.onnx"):
        load(copy)
    graph.unlink()
    with pytest.raises(errors.ExportMissing, match=r"model\.onnx is missing"):
        load(copy)
    graph.write_bytes(whole)
    load(copy)


def test_a_foreign_tokenizer(copy: Path) -> None:
    tokenizer = copy / "guard_tokenizer" / "1" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(errors.TokenizerMismatch, match="tokenizer"):
        GuardTokenizerModel(tokenizer.parent)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("layers", 1.5, "layers must be a whole number"),
        ("context", "big", "context must be a whole number"),
        ("kv_heads", True, "kv_heads must be a whole number"),
        ("kv_dtype", "int8", "kv_dtype is not float32"),
        ("attention", "flash", "attention must be one of"),
        ("weights", "int2", "weights must be one of"),
        ("layers", 3, "not the graph that its manifest describes"),
        ("attention", "int8", "not the graph that its manifest describes"),
        ("attention", "portable", "not the graph that its manifest describes"),
    ],
)
def test_a_manifest_that_does_not_fit(copy: Path, field: str, value: object, sentence: str) -> None:
    """Neither its own fields nor the graph beside it."""
    path = copy / "stream_guard" / "1" / "manifest.json"
    facts = json.loads(path.read_text()) | {field: value}
    if field == "attention":
        del facts["kv_dtype"]
    path.write_text(json.dumps(facts))
    with pytest.raises(errors.CorruptFile, match=sentence):
        load(copy)
    checks = {"files": repository_checks(copy)["stream_guard files"]}
    (finding,) = run_checks(checks)
    assert finding.state == "failed"
    assert re.search(sentence, finding.said)


def test_an_engine_that_would_write_beyond_its_slots(copy: Path) -> None:
    manifest = Manifest.read(copy / "stream_guard" / "1")
    engine = Engine("model.engine", "tensorrt", "10", ("9.0",), 128, (Profile(32, 17, 512),))
    with pytest.raises(ValueError, match="more than 16 tokens writes beyond its slots"):
        replace(manifest, engine=engine)


def test_models_of_another_version_are_named() -> None:
    log = "E1126 model.cc:1] failed to load: ModuleNotFoundError: No module named 'qwen3guard_client.wire'\n"
    assert reason(log).startswith("Its models are of another version (qwen3guard_client.wire is not here): export")


NO_FOLDER = "Failed to create temporary directory for Python environments."
STOOD_STILL = "The process of a model stood still for seconds, which Triton does not bear while it loads."


NO_DRIVER = (
    'E1127 14:49:40.208009 4810 server.cc:241] "CudaDriverHelper has not been initialized."\n'
    "E1127 14:49:41.208009 4810 ensemble_scheduler.cc:1] unable to create stream for classify: CUDA driver version is"
    " insufficient for CUDA runtime version\n"
)
RAISED = "terminate called after throwing an instance of 'PythonBackendException'\n  what():  {}\n"
REFUSED = f"E1127 14:49:42.208009 4810 model_lifecycle.cc:641] failed to load 'stream_guard': {NO_FOLDER}\n"
TOLD_TO_STOP = "Signal (15) received.\n"
BY_SIGTERM = Fault("The server was killed by SIGTERM.", interrupted=True)


@pytest.mark.parametrize(
    ("ends", "log", "fault"),
    [
        ("kill -ABRT $$", RAISED.format(NO_FOLDER), Fault(NO_FOLDER)),
        ("kill -ABRT $$", RAISED.format("boost::interprocess::lock_exception"), Fault(STOOD_STILL, interrupted=True)),
        ("kill -ABRT $$", "", Fault("The server was killed by SIGABRT.", interrupted=True)),
        ("kill -SEGV $$", REFUSED, Fault(f"failed to load 'stream_guard': {NO_FOLDER}")),
        ("kill -SEGV $$", "", Fault("The server was killed by SIGSEGV.", interrupted=True)),
        ("kill -KILL $$", RAISED.format(NO_FOLDER), Fault("The server was killed by SIGKILL.", interrupted=True)),
        ("exit 1", RAISED.format(NO_FOLDER), Fault(NO_FOLDER)),
        ("exit 1", "", Fault(NO_REASON)),
        ("exit 1", TOLD_TO_STOP, BY_SIGTERM),
        ("exit 0", TOLD_TO_STOP, BY_SIGTERM),
    ],
)
def test_a_server_that_ends_while_it_loads_says_why(repository: Path, ends: str, log: str, fault: Fault) -> None:
    """Seen where no folder for temporary files can be written, where a model's process was stopped for 7 s (Triton
    raises an error that nothing catches), where Triton crashed after it had refused a model, and where somebody told it
    to stop."""
    server = EmbeddedServer(ServerSettings(repository))
    server._process = subprocess.Popen(["sh", "-c", ends])
    server._process.wait()
    server._log = SimpleNamespace(text=NO_DRIVER + log)  # type: ignore[assignment]
    assert server.fault() == fault


def test_a_repository_whose_path_is_not_utf8(repository: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(repository, tmp_path / "r\udcff")
    with pytest.raises(errors.ServeError, match="not in UTF-8"):
        EmbeddedServer(ServerSettings(copied))


@pytest.mark.parametrize("name", ["a b", "a'b", "a;b", "a$(touch b)", "a*", "a\nb", "{a,b}"])
def test_a_repository_that_a_shell_would_not_take_as_one_word_is_reached_by_a_link(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Triton starts models by a shell."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for path, by_a_link in ((repository, False), (Path(shutil.copytree(repository, tmp_path / name)), True)):
        server = EmbeddedServer(ServerSettings(path))
        server._footprint = Footprint()
        server._footprint.make()
        try:
            reached = server._repository()
            assert reached.is_symlink() == by_a_link
            assert reached.samefile(path)
        finally:
            server._footprint.remove()


@pytest.mark.parametrize("name", ["threshold", "blocked", "Strict", "", "debounce "])
def test_a_parameter_that_nobody_reads_is_refused_by_name(name: str) -> None:
    def stated(*names: str) -> dict[str, str]:
        values = {each: {"string_value": "1"} for each in names}
        return {"model_name": "stream_guard", "model_config": json.dumps({"parameters": values})}

    assert parameters(stated("debounce", "EXECUTION_ENV_PATH")) == {"debounce": "1", "EXECUTION_ENV_PATH": "1"}
    with pytest.raises(errors.InvalidParameter, match=f"a parameter '{name}', which nobody reads; there are alone_tok"):
        parameters(stated("debounce", name))


def test_a_variable_has_priority_over_config_pbtxt() -> None:
    args = {
        "model_name": "stream_guard",
        "model_config": json.dumps({"parameters": {"slots": {"string_value": "5"}}}),
    }
    environment = {"QWEN3GUARD_STREAM_SLOTS": "7", "QWEN3GUARD_GEN_SLOTS": "9", "QWEN3GUARD_TOKEN": "x"}
    values = parameters(args, environment)
    assert values == {"slots": "7"}
    assert Parameters(values).whole("slots") == 7
    wrong = parameters(args, {"QWEN3GUARD_STREAM_SLOTS": "many"})
    with pytest.raises(errors.InvalidParameter, match=r"^The variable QWEN3GUARD_STREAM_SLOTS is 'many'; it"):
        Parameters(wrong).whole("slots")


@pytest.mark.parametrize(
    "name", ["QWEN3GUARD_STREAM_SLOT", "QWEN3GUARD_GEN_DEBOUNCE", "QWEN3GUARD_STREAM_", "QWEN3GUARD_GEN_TOKENIZER_X"]
)
def test_a_variable_that_sets_nothing_is_refused_by_name(name: str) -> None:
    args = {"model_name": "guard_tokenizer", "model_config": json.dumps({"parameters": {}})}
    with pytest.raises(errors.InvalidParameter, match=f"^The variable {name} sets no parameter; there are QWEN3GUARD_"):
        parameters(args, {name: "1"})
    (finding,) = run_checks({"parameters": lambda: machine_checks.set_by_variables({name: "1"})})
    assert (finding.state, name in finding.said) == ("failed", True)


@pytest.mark.parametrize("name", ["QWEN3GUARD_STREM_SLOTS", "QWEN3GUARD_SLOTS", "QWEN3GUARD_LOGS", "QWEN3GUARD_"])
def test_a_misspelt_beginning_of_a_variable_is_told_too(name: str) -> None:
    args = {"model_name": "stream_guard", "model_config": json.dumps({"parameters": {}})}
    with pytest.raises(errors.InvalidParameter, match=f"^The variable {name} means nothing here; .*QWEN3GUARD_GEN_"):
        parameters(args, {name: "1"})


@pytest.mark.parametrize("value", ["JSON", "", "true", "json "])
def test_another_log_format_than_there_is(value: str) -> None:
    args = {"model_name": "stream_guard", "model_config": json.dumps({"parameters": {}})}
    assert parameters(args, {LOG_VARIABLE: "json"}) == parameters(args, {LOG_VARIABLE: "text"}) == {}
    with pytest.raises(errors.InvalidParameter, match=f"^The variable {LOG_VARIABLE} is '{value}'; it must be text or"):
        parameters(args, {LOG_VARIABLE: value})


@pytest.mark.parametrize(
    "value", ["", "-1", "nan", "inf", "1_0", "\N{ARABIC-INDIC DIGIT THREE}", "0x10", "1e999", "5s"]
)
def test_what_is_no_number_of_seconds(value: str) -> None:
    assert [Parameters({"idle_s": each}).seconds("idle_s") for each in ("1", " .5\n", "5.", "1e-07")] == [
        1,
        0.5,
        5,
        1e-7,
    ]
    with pytest.raises(errors.InvalidParameter, match=r"^The parameter idle_s is '.*'; it must be a number of seconds"):
        Parameters({"idle_s": value}).seconds("idle_s")


@pytest.mark.parametrize(
    ("name", "value"),
    [("slot_tokens", "many"), ("cuda_options", "[1]"), ("cuda_options", '{"device_id": "\N{SUPERSCRIPT TWO}"}')],
)
def test_a_parameter_of_cuda_is_read_on_the_cpu_too(repository: Path, name: str, value: str) -> None:
    with pytest.raises(errors.InvalidParameter, match=name):
        load(repository, **{name: value})


def test_more_threads_than_a_rows_result_bears(repository: Path) -> None:
    heads = Manifest.read(repository / "stream_guard" / "1").kv_heads
    assert load(repository, threads=str(heads))
    with pytest.raises(errors.InvalidParameter, match=rf"threads is '{heads + 1}'; .* from 0 to {heads}"):
        load(repository, threads=str(heads + 1))


@pytest.mark.parametrize("slots", ["1000000000", str(2**62)])
def test_more_slots_than_there_is_room_for(repository: Path, slots: str) -> None:
    with pytest.raises(errors.OverBudget, match=r"no room for .* slots"):
        GenGuardModel(repository / "gen_guard" / "1", GEN_PARAMETERS | {"slots": slots})


def test_variables_of_kubernetes_are_none_of_ours() -> None:
    names = [
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_GRPC",
        "PORT",
        "PORT_8001_TCP",
        "PORT_8001_TCP_ADDR",
        "CANARY_SERVICE_HOST",
    ]
    for service in ("QWEN3GUARD", "QWEN3GUARD_STREAM", "QWEN3GUARD_REPLICAS"):
        assert set_variables({f"{service}_{each}": "10.0.0.1" for each in names}) == {}


def test_the_doctor_shows_what_variables_set() -> None:
    (finding,) = machine_checks.set_by_variables({"QWEN3GUARD_STREAM_KV_BUDGET_BYTES": "4096"})
    assert finding.state == "ok"
    assert "stream_guard's kv_budget_bytes is '4096' (QWEN3GUARD_STREAM_KV_BUDGET_BYTES)" in finding.said
    assert list(machine_checks.set_by_variables({})) == []
