"""What a server's log says, for failures that a machine without a GPU cannot provoke.

Lines are quoted from vLLM 0.32.0; the file that writes them is named. The rest is provoked for real
in test_real_server.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core import Outcome
from autotune.serving.server.failures import FailureKind, ServerFailure, classify

NOISE = """\
(APIServer pid=3) ERROR 11-23 17:52:19 [async_llm.py:906] \
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. \
See stack trace (above) for the root cause.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked objects
  warnings.warn('resource_tracker: There appear to be %d '
"""
CORE = "(EngineCore pid=7) ERROR 11-23 17:54:31 [core.py:1510] "

OUT_OF_MEMORY = {
    # torch/csrc: c10/cuda/CUDACachingAllocator.cpp, seen through vllm/v1/engine/core.py
    "cuda": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a "
    "total capacity of 119.64 GiB of which 1.02 GiB is free.",
    # vllm/v1/worker/gpu_model_runner.py, _dummy_sampler_run
    "sampler": "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy "
    "requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing "
    "the engine.",
    # vllm/v1/worker/utils.py, request_memory
    "start": "ValueError: Free memory on device cuda:0 (90.1/119.64 GiB) on startup is less than "
    "desired GPU memory utilization (0.87, 104.09 GiB). Decrease GPU memory utilization or reduce "
    "GPU memory used by other processes.",
    # torch c10/core/CPUAllocator: a machine's own memory, which unified devices share
    "host": "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: "
    "can't allocate memory: you tried to allocate 68719476736 bytes. Error code 12 (Cannot "
    "allocate memory)",
}
OTHERS = {
    # vllm/v1/core/kv_cache_utils.py, _check_enough_kv_cache_memory
    "cache": (
        "ValueError: No available memory for the cache blocks. Try increasing "
        "`gpu_memory_utilization` when initializing the engine",
        FailureKind.KV_CACHE_TOO_SMALL,
    ),
    # vllm/config/model.py and huggingface_hub/errors.py
    "gated": (
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo",
        FailureKind.MODEL_MISSING,
    ),
    # vllm/config/model.py
    "value": (
        "ValueError: Unknown quantization method: nvfp5. Must be one of ['awq', 'fp8'].",
        FailureKind.BAD_VALUE,
    ),
    # docker's own
    "docker flag": ("unknown flag: --gpu", FailureKind.BAD_FLAG),
    "image": (
        "docker: Error response from daemon: pull access denied for vlm/vllm-openai",
        FailureKind.ENVIRONMENT,
    ),
    "other": ("RuntimeError: CUDA error: an illegal memory access", FailureKind.CRASH),
}


def log_with(folder: Path, line: str) -> Path:
    path = folder / "server.log"
    path.write_text(
        f"INFO 11-23 started\n{CORE}Traceback (most recent call last):\n{CORE}{line}\n{NOISE}"
    )
    return path


@pytest.mark.parametrize("name", OUT_OF_MEMORY)
@pytest.mark.parametrize("code", [0, 1])
def test_out_of_memory_is_told_at_the_start_and_under_load(
    name: str, code: int, tmp_path: Path
) -> None:
    log = log_with(tmp_path, OUT_OF_MEMORY[name])
    start = classify(log, code, served=False)
    load = classify(log, code, served=True)
    assert start.kind is FailureKind.OUT_OF_MEMORY_AT_START
    assert load.kind is FailureKind.OUT_OF_MEMORY_UNDER_LOAD
    assert start.line == load.line == OUT_OF_MEMORY[name]
    assert start.outcome is load.outcome is Outcome.OUT_OF_MEMORY


@pytest.mark.parametrize("name", OTHERS)
def test_a_start_that_fails_otherwise(name: str, tmp_path: Path) -> None:
    line, kind = OTHERS[name]
    failure = classify(log_with(tmp_path, line), 1, served=False)
    assert failure.kind is kind
    assert failure.line == line


def test_what_is_a_bad_value_at_the_start_is_a_crash_under_load(tmp_path: Path) -> None:
    log = log_with(tmp_path, "ValueError: Synthetic acceptance not supported with CPU sampling")
    assert classify(log, 1, served=False).kind is FailureKind.BAD_VALUE
    assert classify(log, 1, served=True).kind is FailureKind.CRASH
    dead = classify(log, 0, served=True)
    assert dead.kind is FailureKind.EXIT_ZERO
    assert dead.line == "ValueError: Synthetic acceptance not supported with CPU sampling"


def test_what_a_kernel_asserted_is_told(tmp_path: Path) -> None:
    """Quoted from a vLLM 0.24.0 that died under load on an H200."""
    log = tmp_path / "log"
    thread = (
        "/pytorch/aten/src/ATen/native/cuda/IndexKernelUtils.cu:16: vectorized_gather_kernel: "
        "block: [3987,1,0], thread: [{},0,0] Assertion `ind >=0 && ind < ind_dim_size && "
        '"vectorized gather kernel index out of bounds"` failed.\n'
    )
    asserted = "".join(map(thread.format, range(64, 96)))
    error = "torch.AcceleratorError: CUDA error: device-side assert triggered"
    log.write_text(f"{asserted}{CORE}RuntimeError: CUDA error\n(EngineCore pid=7) {error}\n{NOISE}")
    failure = classify(log, 1, served=True)
    assert failure.kind is FailureKind.CRASH
    assert failure.line.startswith(f"{error}: ind >=0 && ")
    assert failure.line.endswith('"vectorized gather kernel index out of bounds"')
    log.write_text(f"{error}\n")
    assert classify(log, 1, served=True).line == error


def test_a_cause_in_the_log_says_more_than_a_time_limit(tmp_path: Path) -> None:
    log = log_with(tmp_path, OTHERS["cache"][0])
    assert classify(log, None, served=False, hung=True).kind is FailureKind.KV_CACHE_TOO_SMALL
    assert classify(log, None, served=True, hung=True).kind is FailureKind.HANG
    log.write_text("loading weights 3 of 7\n")
    failure = classify(log, None, served=False, hung=True)
    assert failure == ServerFailure(
        FailureKind.HANG, "still running; last line: loading weights 3 of 7", None, log
    )


def test_sigkill_without_a_word_is_want_of_memory(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("loading\n")
    assert classify(log, 137, served=False).kind is FailureKind.OUT_OF_MEMORY_AT_START
    assert classify(log, 137, served=True).kind is FailureKind.OUT_OF_MEMORY_UNDER_LOAD
    assert classify(log, 139, served=True).kind is FailureKind.CRASH


def test_only_errors_count_not_what_users_wrote(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("INFO [logger.py:40] Received request: prompt: 'CUDA out of memory'\n")
    failure = classify(log, 1, served=True)
    assert failure.kind is FailureKind.CRASH
    assert failure.line.startswith("exit status 1; last line: INFO")


@pytest.mark.parametrize(
    ("wanted", "kind"),
    [
        ("-0.13", FailureKind.KV_CACHE_TOO_SMALL),
        ("0.0", FailureKind.KV_CACHE_TOO_SMALL),
        ("0.05", FailureKind.OUT_OF_MEMORY_AT_START),
        ("21.5", FailureKind.OUT_OF_MEMORY_AT_START),
    ],
)
def test_a_cpu_s_kv_cache_is_too_small_or_too_large(
    wanted: str, kind: FailureKind, tmp_path: Path
) -> None:
    # vllm/v1/worker/cpu_worker.py, determine_available_memory: one text for both.
    line = "ValueError: Available memory on node 0 (20.1/23.4 GiB) on kv cache allocation is less "
    line += f"than requested memory for kv ({wanted}/22.0 GiB). Reduce CPU memory used by others."
    assert classify(log_with(tmp_path, line), 1, served=False).kind is kind


@pytest.mark.parametrize("text", ["", "\n\n", "\x00\xff"])
def test_an_empty_or_broken_log_still_gives_a_line(text: str, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(text.encode("latin-1"))
    assert classify(log, 1, served=False).line
    assert classify(tmp_path / "none", 1, served=False).line == (
        "exit status 1; last line: nothing in its log"
    )


def test_every_kind_has_an_outcome_and_a_text() -> None:
    for kind in FailureKind:
        failure = ServerFailure(kind, "why", 1, Path("/tmp/log"))
        assert failure.outcome is not Outcome.OK
        assert str(failure) == f"{kind}: why (log: /tmp/log)"
