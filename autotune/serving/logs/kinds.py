"""The classes of a server's failure: what an error's words mean, and what to do about it.

Phrases are those of vLLM 0.32 (``v1/worker``, ``v1/core/kv_cache_utils.py``, ``v1/executor``,
``v1/engine``), Triton (``runtime/errors.py``, the NVIDIA backend's compiler), torch, FlashInfer's
JIT, huggingface_hub, safetensors, Docker and Ray.
"""

from __future__ import annotations

import re
from enum import StrEnum

from autotune.core import Outcome


class FailureKind(StrEnum):
    """Why a server does not serve."""

    BAD_FLAG = "bad_flag"
    BAD_VALUE = "bad_value"
    MODEL_MISSING = "model_missing"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    OUT_OF_MEMORY_AT_START = "out_of_memory_at_start"
    OUT_OF_MEMORY_UNDER_LOAD = "out_of_memory_under_load"
    HOST_MEMORY = "host_memory"
    """We ended it before the host's memory ran out; no log says so."""
    OUT_OF_RESOURCES = "out_of_resources"
    """A Triton kernel asks for more shared memory than the device has."""
    COMPILE_FAILED = "compile_failed"
    """nvcc, ptxas, ninja, Triton, FlashInfer or Inductor could not build a kernel."""
    MEMORY_CHANGED = "memory_changed"
    """Somebody gave memory back while vLLM measured it; another try may go well."""
    COMMUNICATION = "communication"
    """Between processes or nodes: NCCL, Gloo, a node that is gone."""
    ENVIRONMENT = "environment"
    """Driver, container, library or disk: no setting of vLLM changes it."""
    STOPPED = "stopped"
    """A signal from outside ended it."""
    HANG = "hang"
    EXIT_ZERO = "exit_zero"
    """It ended by itself with status 0, which vLLM does when its engine dies under load."""
    PORT_TAKEN = "port_taken"
    CRASH = "crash"


OUTCOMES = {
    FailureKind.BAD_FLAG: Outcome.CONSTRAINT,
    FailureKind.BAD_VALUE: Outcome.CONSTRAINT,
    FailureKind.MODEL_MISSING: Outcome.RUNTIME_ERROR,
    FailureKind.KV_CACHE_TOO_SMALL: Outcome.OUT_OF_MEMORY,
    FailureKind.OUT_OF_MEMORY_AT_START: Outcome.OUT_OF_MEMORY,
    FailureKind.OUT_OF_MEMORY_UNDER_LOAD: Outcome.OUT_OF_MEMORY,
    FailureKind.HOST_MEMORY: Outcome.HOST_MEMORY,
    FailureKind.OUT_OF_RESOURCES: Outcome.OUT_OF_RESOURCES,
    FailureKind.COMPILE_FAILED: Outcome.COMPILE_ERROR,
    FailureKind.MEMORY_CHANGED: Outcome.RUNTIME_ERROR,
    FailureKind.COMMUNICATION: Outcome.CRASH,
    FailureKind.ENVIRONMENT: Outcome.RUNTIME_ERROR,
    FailureKind.STOPPED: Outcome.RUNTIME_ERROR,
    FailureKind.HANG: Outcome.TIMEOUT,
    FailureKind.EXIT_ZERO: Outcome.CRASH,
    FailureKind.PORT_TAKEN: Outcome.RUNTIME_ERROR,
    FailureKind.CRASH: Outcome.CRASH,
}
ADVICE = {
    FailureKind.BAD_FLAG: "correct the flag: `vllm serve --help=all` of this version lists them",
    FailureKind.BAD_VALUE: "correct the value that the line names",
    FailureKind.MODEL_MISSING: "check the model's name, its files, HF_TOKEN and the network",
    FailureKind.KV_CACHE_TOO_SMALL: "lower --max-model-len or --max-num-seqs, or raise "
    "--gpu-memory-utilization",
    FailureKind.OUT_OF_MEMORY_AT_START: "stop what else uses the memory, or lower "
    "--gpu-memory-utilization or --max-num-seqs",
    FailureKind.OUT_OF_MEMORY_UNDER_LOAD: "lower --gpu-memory-utilization, --max-num-batched-tokens"
    " or --max-num-seqs",
    FailureKind.HOST_MEMORY: "lower --gpu-memory-utilization or --max-model-len, give "
    "--kv-cache-memory-bytes, or stop what else uses the memory",
    FailureKind.OUT_OF_RESOURCES: "a row of the tuned MoE file does not fit this device: "
    "`autotune verify FILE --device …` names it; tune for this device or take the file away",
    FailureKind.COMPILE_FAILED: "the CUDA toolkit, Triton or FlashInfer here does not know this "
    "GPU: take versions that do, or another backend",
    FailureKind.MEMORY_CHANGED: "start it again: memory was given back while vLLM measured it",
    FailureKind.COMMUNICATION: "check that the other nodes and GPUs live, and the network interface"
    " (NCCL_SOCKET_IFNAME, VLLM_HOST_IP); NCCL_DEBUG=INFO says more",
    FailureKind.ENVIRONMENT: "repair the machine or the container; no flag of vLLM changes it",
    FailureKind.STOPPED: "look who sent it: a login that ended, docker stop, systemd, earlyoom",
    FailureKind.HANG: "look at the load and the other nodes; start it again",
    FailureKind.EXIT_ZERO: "the engine died under load: look at the lines before",
    FailureKind.PORT_TAKEN: "another process listens there: stop it, or give another --port",
    FailureKind.CRASH: "search vLLM's issues for the line",
}

_OUT_OF_MEMORY = (
    r"OutOfMemoryError|out of memory(?! allocator)|^MemoryError"
    r"|is less than desired \w+ memory utilization|is less than the engine's budget"
    r"|is less than requested memory for kv|Out of memory: Killed|[Oo]ut of memory: Kill process"
    r"|[Cc]an't allocate memory|Cannot allocate memory|bad_alloc|CUBLAS_STATUS_ALLOC_FAILED"
    r"|low memory! at or below|due to memory pressure|oom-kill:|OOMKilled"
    r"|node running low on memory|hipErrorOutOfMemory|memory limit exceeded"
    r"|killed by the OOM killer|result 'oom-kill'|status=9/KILL|exited with code 137"
)
_SIGNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            FailureKind.BAD_FLAG,
            r"error: (unrecognized arguments|ambiguous option)|^unknown (shorthand )?flag: "
            r"|^Error: unknown (shorthand )?flag",
        ),
        (FailureKind.BAD_VALUE, r": error: (argument |the following arguments are required)"),
        (
            FailureKind.PORT_TAKEN,
            r"[Aa]ddress already in use|port is already allocated|EADDRINUSE"
            r"|DistNetworkError.*bind",
        ),
        (FailureKind.MEMORY_CHANGED, r"Error in memory profiling"),
        (
            FailureKind.OUT_OF_RESOURCES,
            r"[Oo]ut ?of ?[Rr]esources?: (shared memory|tensor memory|threads)"
            r"|^\S*OutOfResources\b",
        ),
        (
            FailureKind.KV_CACHE_TOO_SMALL,
            r"No available memory for the cache blocks|To serve at least one request with"
            r"|larger than the (maximum number of tokens that can be stored in|available) KV cache"
            r"|is less than requested memory for kv \((-|0\.0/)"
            r"|not enough KV cache|max_num_seqs .* exceeds available Mamba cache blocks",
        ),
        (FailureKind.OUT_OF_MEMORY_AT_START, _OUT_OF_MEMORY),
        (
            FailureKind.COMPILE_FAILED,
            r"^nvcc fatal|^ptxas (fatal|error)|PTXASError|PTXAS error|Ninja build failed"
            r"|ninja: (error|build stopped)|Error (building|compiling) (extension|objects)"
            r"|No supported CUDA architectures|NVRTC_ERROR|nvrtc: error"
            r"|triton\.compiler\.errors\.\w+|^(triton\.)?CompilationError|PassManager::run failed"
            r"|failed to translate module|LLVM ERROR|CppCompileError|Failed to find C compiler"
            r"|Could not find nvcc|^\S+\.(cu|cuh|cpp|cc|c|h|hpp)[:(]\d+.*: (fatal )?error"
            r"|fatal error: Python\.h|LoweringException|error: Ninja is required"
            r"|NVCC compilation failed"
            r"|InductorError|^(gcc|g\+\+|cc|c\+\+|clang|cc1plus|x86_64-\S+"
            r"|aarch64-\S+): (fatal )?error",
        ),
        (
            FailureKind.MODEL_MISSING,
            r"Invalid repository ID or local directory|LocalEntryNotFoundError"
            r"|RepositoryNotFoundError|GatedRepoError|HFValidationError|OfflineModeIsEnabled"
            r"|RevisionNotFoundError|EntryNotFoundError|is not a valid model identifier"
            r"|is not a local folder and|Cannot find any model weights|HfHubHTTPError"
            r"|gated repo|(401|403|404) Client Error|SafetensorError|HeaderTooLarge"
            r"|Max retries exceeded with url: /api/|(huggingface|hf-mirror|modelscope).*resolve"
            r"|We couldn't connect to|couldn't find them in the cached files"
            r"|does not appear to have a file named|Unrecognized model in"
            r"|InvalidHeaderDeserialization"
            r"|No such file or directory: '[^']*\.(safetensors|json|bin)",
        ),
        (
            FailureKind.HANG,
            r"RPC call to \w+ timed out|Watchdog caught collective operation timeout"
            r"|Execution of .* timed out|EngineCore.*did not respond|cancelled due to timeout",
        ),
        (
            FailureKind.ENVIRONMENT,
            r"No space left on device|NVIDIA driver on your system is too old"
            r"|CUDA driver version is insufficient|cudaGetDeviceCount|Found no NVIDIA driver"
            r"|No CUDA GPUs are available|Failed to infer device type"
            r"|Device string must not be empty"
            r"|NVMLError|NVML: |[Dd]river/library version mismatch|unsatisfied condition: cuda"
            r"|unsupported toolchain|device kernel image is invalid|CUDA driver error"
            r"|insufficient shared memory|shared memory segment|OCI runtime (error|create failed)"
            r"|DeepGEMM backend is not available"
            r"|no kernel image is available|cannot open shared object file|undefined symbol"
            r"|could not select device driver|unresolvable CDI|nvidia-container-cli"
            r"|exec format error|no matching manifest|pull access denied|manifest unknown"
            r"|executable file not found|command not found|No module named|Too many open files"
            r"|Cannot connect to the Docker daemon|CUDA error: (unknown|system not yet|forward"
            r"|initialization) ?|Error 80[2-4]|Permission denied|GLIBC(XX)?_\S+' not found"
            r"|repository does not exist|Unable to find image|toomanyrequests",
        ),
        (
            FailureKind.COMMUNICATION,
            r"NCCL error|nccl\w+Error|DistBackendError|DistStoreError|Connection reset by peer"
            r"|Connection closed by (remote )?peer|DistNetworkError|The client socket has"
            r"|Broken pipe|ray\.exceptions\.(ActorDied|NodeDied|RayActor|ActorUnavailable)"
            r"|waiting for clients|Gloo connectFullMesh|Every node should have a unique IP"
            r"|RayActorError",
        ),
        (
            FailureKind.STOPPED,
            r"received signal=SIG|^(signal|killed) SIGTERM|exit code: -(15|2)\)"
            r"|status=15/TERM|exited with code 143",
        ),
    )
)
_BAD_VALUE = re.compile(r"^([\w.]+\.)?(ValidationError|ValueError|NotImplementedError)\b")


def kind_of(text: str) -> FailureKind | None:
    """The class that the words of an error name; None where they name none."""
    return next((kind for kind, sign in _SIGNS if sign.search(text)), None)


def is_bad_value(text: str) -> bool:
    """Whether an error is what vLLM raises for a setting that it does not take."""
    return _BAD_VALUE.match(text) is not None
