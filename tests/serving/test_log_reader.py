"""The cause, the class and the facts of a log; a log that is hostile."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core import BadInputError, Outcome
from autotune.machine.guard import GIB, MemoryGuard
from autotune.serving.logs import read
from autotune.serving.logs.facts import facts_of
from autotune.serving.logs.kinds import ADVICE, OUTCOMES, FailureKind
from autotune.serving.logs.read import HEAD, TAIL, lines_of, read_log
from autotune.serving.server import server
from autotune.serving.server.explain import explain
from autotune.serving.server.failures import classify
from autotune.util.edge import EdgeError

K = FailureKind
Command = Callable[..., tuple[int, str, str]]
CORE = "(EngineCore pid=93) ERROR 11-26 08:41:19 [core.py:1242] "
UP = "(APIServer pid=1) INFO:     Application startup complete.\n"
DEAD = (
    "(APIServer pid=1) ERROR 11-26 08:52:03 [async_llm.py:906] vllm.v1.engine.exceptions."
    "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root "
    "cause.\n"
)
WRAPPED = (
    "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. "
    "Failed core proc(s): {'EngineCore': 1}\n"
)
OOR = (
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 147456, "
    "Hardware limit: 101376. Reducing block sizes or `num_stages` may help."
)

SAID: list[tuple[str, FailureKind]] = [
    # argparse and docker
    ("vllm serve: error: unrecognized arguments: --max-modle-len 4", K.BAD_FLAG),
    ("usage.py: error: ambiguous option: --max could match --max-num-seqs", K.BAD_FLAG),
    ("vllm serve: error: argument --max-num-seqs: invalid int value: 'x'", K.BAD_VALUE),
    ("vllm: error: the following arguments are required: model_tag", K.BAD_VALUE),
    ("unknown shorthand flag: 'z' in -z", K.BAD_FLAG),
    ("docker: Error response from daemon: Bind for 0.0.0.0:8000 failed: port is already "
     "allocated", K.PORT_TAKEN),
    ('docker: Error response from daemon: could not select device driver "" with capabilities: '
     "[[gpu]].", K.ENVIRONMENT),
    ("docker: no matching manifest for linux/arm64/v8 in the manifest list entries.",
     K.ENVIRONMENT),
    ("exec /usr/local/bin/vllm: exec format error", K.ENVIRONMENT),
    ("bash: vllm: command not found", K.ENVIRONMENT),
    ("python3: error while loading shared libraries: libcudart.so.13: cannot open shared object "
     "file: No such file or directory", K.ENVIRONMENT),
    # sockets
    ("OSError: [Errno 98] Address already in use", K.PORT_TAKEN),
    ("ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address "
     "already in use", K.PORT_TAKEN),
    ("torch.distributed.DistNetworkError: The server socket has failed to listen on any local "
     "network address. port: 29500, EADDRINUSE", K.PORT_TAKEN),
    # memory
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB.",
     K.OUT_OF_MEMORY_AT_START),
    ("torch.cuda.OutOfMemoryError: CUDA out of memory.", K.OUT_OF_MEMORY_AT_START),
    ("torch.AcceleratorError: CUDA error: out of memory", K.OUT_OF_MEMORY_AT_START),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
     K.OUT_OF_MEMORY_AT_START),
    ("ValueError: Free memory on device cuda:0 (90.1/119.64 GiB) on startup is less than desired "
     "GPU memory utilization (0.87, 104.09 GiB).", K.OUT_OF_MEMORY_AT_START),
    ("ValueError: Free memory on device cuda:0 (9.1/80 GiB) on startup is less than the engine's "
     "budget after excluding external process's weights (0.9, 72 GiB).", K.OUT_OF_MEMORY_AT_START),
    ("MemoryError: std::bad_alloc: out_of_memory", K.OUT_OF_MEMORY_AT_START),
    ("[88312.11] Out of memory: Killed process 4711 (VLLM::EngineCor) total-vm:99kB",
     K.OUT_OF_MEMORY_AT_START),
    ("Memory cgroup out of memory: Killed process 7 (python3)", K.OUT_OF_MEMORY_AT_START),
    ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
     K.OUT_OF_MEMORY_AT_START),
    ('earlyoom[812]: sending SIGTERM to process 4711 uid 0 "VLLM::EngineCor": low memory! at or '
     "below SIGTERM limits", K.OUT_OF_MEMORY_AT_START),
    ("ValueError: No available memory for the cache blocks. Try increasing "
     "`gpu_memory_utilization`", K.KV_CACHE_TOO_SMALL),
    ("ValueError: To serve at least one request with the model's max seq len (262144), (24.00 GiB "
     "KV cache is needed", K.KV_CACHE_TOO_SMALL),
    ("AssertionError: Error in memory profiling. Initial free memory 82.94 GiB, current free "
     "memory 90.17 GiB.", K.MEMORY_CHANGED),
    # kernels
    (OOR, K.OUT_OF_RESOURCES),
    ("triton.runtime.errors.OutOfResources: out of resource: tensor memory, Required: 1024, "
     "Hardware limit: 512.", K.OUT_OF_RESOURCES),
    ("OutOfResources: out of resource: threads, Required: 2048, Hardware limit: 1024",
     K.OUT_OF_RESOURCES),
    ("nvcc fatal   : Unsupported gpu architecture 'compute_121a'", K.COMPILE_FAILED),
    ("ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'", K.COMPILE_FAILED),
    ("triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen error",
     K.COMPILE_FAILED),
    ("triton.compiler.errors.CompilationError: at 12:4: incompatible types", K.COMPILE_FAILED),
    ("RuntimeError: PassManager::run failed", K.COMPILE_FAILED),
    ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
     K.COMPILE_FAILED),
    ("RuntimeError: No supported CUDA architectures found for major versions [10].",
     K.COMPILE_FAILED),
    ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist",
     K.COMPILE_FAILED),
    ("LLVM ERROR: Cannot select: intrinsic %llvm.nvvm.shfl", K.COMPILE_FAILED),
    ("torch._inductor.exc.InductorError: LoweringException: AssertionError: x", K.COMPILE_FAILED),
    # the model
    ("huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo",
     K.MODEL_MISSING),
    ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.", K.MODEL_MISSING),
    ("huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.", K.MODEL_MISSING),
    ("huggingface_hub.errors.HfHubHTTPError: 403 Forbidden: Please enable access",
     K.MODEL_MISSING),
    ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files",
     K.MODEL_MISSING),
    ("huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach", K.MODEL_MISSING),
    ("huggingface_hub.errors.HFValidationError: Repo id must be in the form", K.MODEL_MISSING),
    ("OSError: We couldn't connect to 'https://hub' to load the files", K.MODEL_MISSING),
    ("ValueError: Unrecognized model in /models/x. Should have a `model_type` key",
     K.MODEL_MISSING),
    ("safetensors_rust.SafetensorError: Error while deserializing header: header too large",
     K.MODEL_MISSING),
    ("RuntimeError: Cannot find any model weights with `/models/x`", K.MODEL_MISSING),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/m/model-1.safetensors'",
     K.MODEL_MISSING),
    # time limits and communication
    ("TimeoutError: RPC call to sample_tokens timed out.", K.HANG),
    ("TimeoutError: RPC call to execute_model timed out.", K.HANG),
    ("[E1126 ProcessGroupNCCL.cpp:632] [Rank 0] Watchdog caught collective operation timeout: "
     "WorkNCCL(SeqNum=7) ran for 600029 milliseconds before timing out.", K.HANG),
    ("torch.distributed.DistBackendError: NCCL error in: /pytorch/x.cpp:77, unhandled system "
     "error", K.COMMUNICATION),
    ("RuntimeError: NCCL error: remote process exited or there was a network error",
     K.COMMUNICATION),
    ("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients",
     K.COMMUNICATION),
    ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
     K.COMMUNICATION),
    ("RuntimeError: Gloo connectFullMesh failed with Connection closed by peer",
     K.COMMUNICATION),
    # driver and machine
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 12040).",
     K.ENVIRONMENT),
    ("RuntimeError: Unexpected error from cudaGetDeviceCount().", K.ENVIRONMENT),
    ("RuntimeError: Failed to infer device type", K.ENVIRONMENT),
    ("RuntimeError: No CUDA GPUs are available", K.ENVIRONMENT),
    ("torch.AcceleratorError: CUDA error: no kernel image is available for execution on the "
     "device", K.ENVIRONMENT),
    ("ImportError: libcudart.so.12: cannot open shared object file: No such file", K.ENVIRONMENT),
    ("ImportError: /x/_C.abi3.so: undefined symbol: _ZN3c10", K.ENVIRONMENT),
    ("OSError: [Errno 28] No space left on device", K.ENVIRONMENT),
    ("ModuleNotFoundError: No module named 'flashinfer'", K.ENVIRONMENT),
    # the rest
    ("ValueError: Unknown quantization method: nvfp5.", K.BAD_VALUE),
    ("NotImplementedError: No KV cache layout", K.BAD_VALUE),
    ("AssertionError: QSA ring capacity 12 must divide the attention block size 1616", K.CRASH),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", K.CRASH),
    ("KeyError: 'model.layers.0.mlp.experts.w13_weight'", K.CRASH),
    ("Segmentation fault (core dumped)", K.CRASH),
]  # fmt: skip
"""What is written, and its class at the start."""


@pytest.mark.parametrize(("text", "kind"), SAID, ids=[text[:40] for text, _ in SAID])
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_said_has_a_class(text: str, kind: FailureKind, *, wrapped: bool) -> None:
    log = f"(APIServer pid=1) INFO 11-26 08:00:00 [a.py:1] starting\n{text}\n"
    found = explain((log + WRAPPED * wrapped).encode())
    assert (found.kind, found.state) == (kind, "failed")
    assert found.cause == text.removeprefix("ERROR:    ") or found.cause == text


def test_every_class_has_an_outcome_and_an_advice() -> None:
    assert set(OUTCOMES) == set(ADVICE) == set(FailureKind)
    assert all(outcome is not Outcome.OK for outcome in OUTCOMES.values())


# --------------------------------------------------------------------- the cause, not the wrapper


def cause(log: str) -> str:
    return explain(log.encode()).cause


def of_core(*texts: str) -> str:
    return "".join(f"{CORE}{text}\n" for text in texts)


def test_of_a_chain_the_cause_is_told() -> None:
    log = of_core(
        "Traceback (most recent call last):",
        '  File "/torch/_subclasses/fake_tensor.py", line 2908, in _dispatch_impl',
        "RuntimeError: a and b must have same reduction dim, but got [s47, 3840] X [5632, 1024].",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "torch._dynamo.exc.TorchRuntimeError: RuntimeError when making fake tensor call",
        "  Explanation: Dynamo failed to run FX node",
    )
    assert cause(log + WRAPPED).startswith("RuntimeError: a and b must have same reduction dim")


def test_a_cause_without_words_is_not_told_for_one_with() -> None:
    link = "The above exception was the direct cause of the following exception:"
    log = of_core("Traceback (most recent call last):", "TimeoutError", "", link, "")
    log += of_core("Traceback (most recent call last):", "RuntimeError: step 7 took too long")
    assert cause(log) == "RuntimeError: step 7 took too long"


def test_the_worker_s_error_is_told_for_the_engine_s() -> None:
    inner = OOR.partition(": ")[2]
    passed = f"RuntimeError: Worker failed with error '{inner}', please check the stack trace above"
    log = "(Worker_TP0 pid=3) ERROR 11-26 08:41:19 [m.py:971] Traceback (most recent call last):\n"
    log += f"(Worker_TP0 pid=3) ERROR 11-26 08:41:19 [m.py:971] {OOR}\n"
    found = explain((log + of_core(passed) + WRAPPED).encode())
    assert (found.kind, found.cause) == (K.OUT_OF_RESOURCES, OOR)
    assert cause(of_core(passed)) == inner


def test_a_compiler_s_words_stand_for_its_wrapper() -> None:
    log = UP + of_core(
        "Traceback (most recent call last):",
        "RuntimeError: Ninja build failed. Ninja output:",
        "ninja: Entering directory `/root/.cache/flashinfer'",
        "[1/4] /usr/local/cuda/bin/nvcc -c batch_prefill.cu",
        "FAILED: batch_prefill.cuda.o",
        "nvcc fatal   : Unsupported gpu architecture 'compute_121a'",
        "ninja: build stopped: subcommand failed.",
    )
    found = explain((log + DEAD).encode())
    assert found.kind is K.COMPILE_FAILED
    assert found.cause.endswith("nvcc fatal   : Unsupported gpu architecture 'compute_121a'")
    built = "main.c:5:10: fatal error: Python.h: No such file or directory\n"
    called = "subprocess.CalledProcessError: Command '['gcc', 'main.c']' returned non-zero exit\n"
    assert "Python.h" in cause(built + CORE + called)


def test_a_stop_from_outside_is_told() -> None:
    stop = (
        "(EngineCore pid=93) INFO 07-29 10:11:02 [core.py:1301] [shutdown] EngineCore: trigger "
        "received signal=SIGTERM\n"
    )
    found = explain((UP + stop + DEAD).encode())
    assert (found.kind, found.state) == (K.STOPPED, "failed")
    assert found.cause.startswith("SIGTERM from outside")
    assert explain((UP + stop).encode()).state == "stopped"
    died = explain((UP + of_core("RuntimeError: boom happened") + stop + DEAD).encode())
    assert died.cause == "RuntimeError: boom happened"


@pytest.mark.parametrize(("code", "signal"), [(143, "SIGTERM"), (130, "SIGINT")])
def test_the_exit_status_tells_of_a_signal(code: int, signal: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(UP)
    failure = classify(tmp_path / "log", code, served=True)
    assert failure.kind is K.STOPPED
    assert failure.line.startswith(signal)


@pytest.mark.parametrize(
    "prefix",
    [
        "(EngineCore_DP0 pid=93) ERROR 11-26 08:41:19 [core.py:1242] ",
        "(EngineCore pid=9) (RayWorkerWrapper pid=1, ip=10.0.0.2) ERROR 11-26 08:41:19 [w.py:1] ",
        "\x1b[36m(Worker ip=10.0.0.2)\x1b[0m ",
        "vllm-1  | ",
        "2026-11-26T08:41:19.123456789Z stderr F ",
        "Nov 26 08:41:19 spark-1 podman[4711]: ",
        "[rank0]: ",
        "\x1b[31m\x1b[1mERROR\x1b[0m 11-26 08:41:19 [core.py:12] ",
    ],
)
def test_prefixes_and_colours_are_no_part_of_the_cause(prefix: str) -> None:
    log = f"{prefix}{OOR} [repeated 3x across cluster]\n"
    assert cause(log) == OOR
    assert cause(json.dumps({"log": log, "stream": "stderr"})) == OOR


# -------------------------------------------------------------------------------------------- facts


def test_a_log_tells_what_runs(in_process: Command, tmp_path: Path) -> None:
    lines = [
        "(EngineCore_DP0 pid=2) INFO 11-26 08:40:55 [core.py:1] Initializing a V1 LLM engine "
        "(v0.32.0) with config: model='google/gemma', speculative_config=SpeculativeConfig("
        "method='mtp', model='google/gemma-assistant', num_spec_tokens=4), x",
        "(EngineCore_DP0 pid=2) WARNING 11-26 08:40:55 [v.py:1] Truncating "
        "max_cudagraph_capture_size to 96",
        "(EngineCore_DP0 pid=2) INFO 11-26 08:40:55 [f.py:1] Using TRITON Fp8 MoE backend out of "
        "potential backends: ['TRITON'].",
        "(EngineCore_DP0 pid=2) WARNING 11-26 08:40:55 [f.py:1] Using default MoE config. "
        "Performance might be sub-optimal! Config file not found at /moe/E=256,N=512,device_name="
        "NVIDIA_GB10.json, /x/vllm/model_executor/layers/fused_moe/configs/E=256,N=512,device_name"
        "=NVIDIA_GB10.json [repeated 2x across cluster]",
        "(EngineCore_DP0 pid=2) INFO 11-26 08:40:56 [f.py:1] Using configuration from /moe/E=256,N="
        "512,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json for MoE layer.",
        "(EngineCore_DP0 pid=2) INFO 11-26 08:41:00 [k.py:1] GPU KV cache size: 186,914 tokens, "
        "Maximum concurrency for 8,192 tokens per request: 22.82x",
        "(EngineCore_DP1 pid=3) INFO 11-26 08:41:00 [k.py:1] GPU KV cache size: 187,560 tokens, "
        "Maximum concurrency for 8,192 tokens per request: 22.90x",
        *(
            "(APIServer pid=1) INFO 11-26 08:42:00 [m.py:1] SpecDecoding metrics: Mean acceptance "
            f"length: {length}, Accepted throughput: 1.00 tokens/s, Drafted throughput: 2.00 "
            f"tokens/s, Accepted: {taken} tokens, Drafted: {drafted} tokens, Per-position "
            "acceptance rate: 0.5, Avg Draft acceptance rate: 50.0%"
            for length, taken, drafted in (("3.00", 200, 400), ("1.00", 0, 100))
        ),
        UP.strip(),
    ]
    facts = facts_of(lines_of("\n".join(lines).encode()))
    assert facts.up
    assert not facts.dead
    assert (facts.vllm, facts.model, facts.device) == ("0.32.0", "google/gemma", "NVIDIA_GB10")
    assert facts.moe_missing[0] == "/moe/E=256,N=512,device_name=NVIDIA_GB10.json"
    assert facts.asked_for == ["E=256,N=512,device_name=NVIDIA_GB10.json"]
    assert facts.folders == ["/moe"]
    assert facts.overridden == ["/moe/E=256,N=512,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"]
    assert facts.moe_backends == ["TRITON"]
    assert facts.graphs == ["Truncating max_cudagraph_capture_size to 96"]
    assert (facts.method, facts.gamma) == ("mtp", 4)
    assert (facts.accepted, facts.drafted, facts.acceptance_length) == (200, 500, 2.6)
    assert (facts.kv_tokens, facts.context, facts.concurrency) == (374474, 8192, 22.9)
    log = tmp_path / "log"
    log.write_text("\n".join(lines))
    code, said, _ = in_process("explain", str(log))
    assert code == 0
    for part in ("started", "374,474 tokens", "40.0%", "E=256,N=512,device_name=NVIDIA_GB10.json"):
        assert part in said
    assert len(said.splitlines()) <= 24
    code, said, _ = in_process("explain", str(log), "--json")
    assert (code, json.loads(said)["moe_missing"]) == (0, facts.moe_missing)


def test_the_exit_code_says_whether_the_server_failed(in_process: Command, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(of_core(OOR) + WRAPPED)
    code, said, _ = in_process("explain", str(log), "--json")
    assert code == 1
    told = json.loads(said)
    assert (told["failure"], told["outcome"]) == ("out_of_resources", "out_of_resources")
    for bad in (tmp_path, tmp_path / "none", Path("/dev/zero")):
        code, _, why = in_process("explain", str(bad))
        assert code == 2
        assert len(why.splitlines()) == 1


def test_an_error_of_one_request_is_no_failure_of_the_server() -> None:
    log = UP + "Traceback (most recent call last):\nValueError: prompt too long\n"
    found = explain(log.encode())
    assert (found.state, found.cause) == ("started", "ValueError: prompt too long")
    assert explain(b"(APIServer pid=1) INFO 11-26 08:00:00 [a.py:1] x\n").state == "not started yet"


# ----------------------------------------------------------------------------------- hostile input


@pytest.mark.parametrize(
    "data", [b"", b"\n \n", b"\0" * 4096, os.urandom(1 << 16), b"shopping: egg"]
)
def test_what_is_no_log_is_refused(data: bytes) -> None:
    with pytest.raises(BadInputError):
        explain(data)


HOSTILE = {
    "one line": b"x" * (8 << 20),
    "parentheses": b"(" * (4 << 20),
    "prefixes": b"(a pid=1) " * (1 << 19),
    "empty lines": b"\n" * (5 << 20),
    "errors": (CORE + OOR + "\n").encode() * 20_000,
    "tracebacks": b'Traceback (most recent call last):\n  File "a", line 1\nX\n' * 60_000,
    "colours": b"\x1b[31m\x1b]0;" * (1 << 19),
    "builds": (CORE + "RuntimeError: Ninja build failed. Ninja output:\n").encode() * 20_000,
    "workers": b"RuntimeError: Worker failed with error 'x', please check\n" * 20_000,
    "quotes": (CORE + "RuntimeError: Worker failed with error '" + "'," * 4000).encode(),
    "json": b'{"' * (1 << 20),
    "returns": b"50%\r" * (1 << 20),
}


@pytest.mark.timing
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_log_takes_seconds(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(HOSTILE[name])
    began = time.process_time()
    assert classify(log, 1, served=False).line
    try:
        assert len(explain(read_log(log)).cause) <= 1000
    except BadInputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either answer will do
    assert time.process_time() - began < 20


def test_of_a_long_log_the_head_and_the_tail_are_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"head\n")
        file.truncate(1 << 36)
        file.seek(0, os.SEEK_END)
        file.write(OOR.encode())
    data = read_log(log)
    assert len(data) <= HEAD + TAIL + 1
    assert explain(b"(APIServer pid=1) INFO x\n" * 400_000 + OOR.encode()).cause == OOR


def test_a_pipe_is_read_and_a_device_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_SILENCE_S", 0.2)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    end = os.open(fifo, os.O_RDWR)
    os.write(end, OOR.encode())
    assert read_log(fifo) == OOR.encode()  # ends, though the writer does not close it
    os.close(end)
    with pytest.raises(EdgeError):
        read_log(Path("/dev/zero"))


_PARTS = st.sampled_from(
    [CORE, OOR, WRAPPED, UP, DEAD, "\n", "\x1b[31m", "\0", "{", '{"log": "', "\r", ": ", "'",
     "Traceback (most recent call last):\n", "\nThe above exception was the direct cause of the "
     "following exception:\n", "[repeated 3x across cluster]", "RuntimeError:", "  ", "\ud7ff"]
)  # fmt: skip


@settings(max_examples=150)
@given(st.one_of(st.binary(max_size=300), st.lists(_PARTS, max_size=30).map("".join)))
def test_no_log_breaks_the_reader(log: bytes | str) -> None:
    data = log.encode() if isinstance(log, str) else log
    try:
        found = explain(data)
    except BadInputError as error:
        assert str(error).isprintable()  # noqa: PT017 - either answer will do
    else:
        assert "\n" not in found.cause
        assert "\x1b" not in found.cause
        json.dumps(found.as_json())


# ------------------------------------------------------------------------------------- a second try


class Failing:
    """A launcher whose servers end at once with a log."""

    starts = True

    def __init__(self, text: str) -> None:
        self.text, self.launched = text, 0

    def launch(self, _: object, log: Path) -> Failing:
        self.launched += 1
        log.write_text(self.text)
        self.log = log
        return self

    url, model = "http://127.0.0.1:9", None
    headers: Mapping[str, str] = {}

    def poll(self) -> int:
        return 1

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("text", "launches"),
    [("AssertionError: Error in memory profiling. Initial", 2), (OOR, 1), ("ValueError: no", 1)],
)
def test_memory_given_back_meanwhile_is_tried_once_more(
    text: str, launches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MEMORY_WAIT_S", 0.0)
    launcher = Failing(text)
    with pytest.raises(server.ServerFailedError):
        server.start(launcher, None, tmp_path / "log", 5.0)  # type: ignore[arg-type]
    assert launcher.launched == launches


class GivenBack(MemoryGuard):
    """Sees memory come back while vLLM profiles, GiB by GiB as listed; no thread watches."""

    watches = True

    def __init__(self, source: Path, *gib: float) -> None:
        super().__init__(source=source, period_s=0.001)
        self.left = list(gib)

    def available(self) -> int:
        return int(self.left.pop(0) * GIB)


def test_the_second_try_waits_until_the_memory_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MEMORY_WAIT_S", 0.0)
    guard = GivenBack(tmp_path / "meminfo", 40, 61, 82, 89.5, 90, 90.1, 90.1, 90.1)
    left: list[int] = []

    class Starting(Failing):
        def launch(self, settings: object, log: Path) -> Failing:
            left.append(len(guard.left))
            return super().launch(settings, log)

        def kill(self) -> None:
            """There is nothing."""

    launcher = Starting("AssertionError: Error in memory profiling. Initial")
    with pytest.raises(server.ServerFailedError):
        server.start(launcher, None, tmp_path / "log", 5.0, guard)  # type: ignore[arg-type]
    assert left == [8, 2], "not before two readings in a row agree"


def test_memory_that_never_stands_still_is_not_waited_for_without_end(tmp_path: Path) -> None:
    guard = GivenBack(tmp_path / "meminfo", *range(1, 200))
    guard.settle(within_s=0.05)
    assert 0 < len(guard.left) < 199


WARNING = (
    "WARNING 11-27 10:00:00 [fused_moe.py:881] Using default MoE config. Performance might be "
    "sub-optimal! Config file not found at /usr/lib/vllm/configs/"
    "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
)


@pytest.mark.parametrize("width", [300, 100, 80, 67])
@pytest.mark.parametrize("begins", [0, WARNING.index("Using")])
def test_a_warning_that_a_terminal_wrapped_is_whole(width: int, begins: int) -> None:
    text = WARNING[begins:]
    pasted = "\n".join(text[at : at + width] for at in range(0, len(text), width))
    facts = facts_of(lines_of(pasted.encode()))
    assert facts.asked_for == ["E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"]
    at_the_path = text.replace(" /usr", "\n/usr")
    assert facts_of(lines_of(at_the_path.encode())).asked_for == facts.asked_for
