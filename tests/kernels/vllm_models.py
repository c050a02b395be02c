"""Build vLLM's own model classes, as on a given GPU, and tell which layers of experts they have.

Run as a program: it reads one JSON object on stdin and prints one JSON list. Weights are on torch's
``meta`` device, so that a model of any size takes seconds and no memory. Each layer of routed
experts is written down at the moment at which vLLM would allocate its weights: the sizes are those
of a rank, rounded as the layer's own method rounds them.
"""

from __future__ import annotations

import enum
import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.kernels.vllm_selection import pretend


def _describe(layer: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """A layer of routed experts as its method is about to create it."""
    method, moe = layer.quant_method, layer.moe_config
    backends = [
        value.value
        for name, value in vars(method).items()
        if name.endswith("backend") and isinstance(value, enum.Enum)
    ]
    experts = getattr(method, "experts_cls", None)
    blocks = ("moe_block_shape", "weight_block_size", "block_shape")
    block = next(filter(None, (getattr(method, name, None) for name in blocks)), None)
    return {
        "name": layer.layer_name,
        "experts": sizes["num_experts"],
        "intermediate": sizes["intermediate_size_per_partition"],
        "hidden": sizes["hidden_size"],
        "topk": moe.experts_per_token,
        "gated": moe.is_act_and_mul,
        "activation": moe.activation.value,
        "method": type(method).__name__,
        "backend": str(backends[0]) if backends else None,
        "kernel": getattr(experts, "__name__", None),
        "block": list(block) if block else None,
    }


class _Recorder:
    """Writes layers down instead of creating their weights."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []

    def __call__(self, original: Any) -> Any:
        def init(layer: Any, *args: Any, **kwargs: Any) -> None:
            chosen = type(layer)._get_quant_method

            def get(this: Any, *a: Any, **k: Any) -> Any:
                method = chosen(this, *a, **k)
                method.create_weights = lambda layer, **sizes: self.layers.append(
                    _describe(layer, sizes)
                )
                return method

            with patch.object(type(layer), "_get_quant_method", get):
                original(layer, *args, **kwargs)

        return init


def _world(tp: int) -> None:
    """Make one process believe in ``tp`` ranks; nothing is ever sent between them."""
    from vllm.distributed import parallel_state

    state: Any = parallel_state
    alone = ("_PP", "_DP", "_PCP", "_DCP")
    for name in ("_WORLD", "_TP", "_EP", "_EPLB", "_SP", *alone):
        size = 1 if name in alone else tp
        group = MagicMock(
            world_size=size, rank=0, rank_in_group=0, local_rank=0, ranks=list(range(size)),
            is_first_rank=True, is_last_rank=True,
        )  # fmt: skip
        setattr(state, name, group)


_ABSENT = ("torchvision", "cutlass", "cuda", "quack", "flashinfer", "deep_gemm")
"""Packages that model files import on a GPU and that nothing here needs."""


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives empty modules for packages that are not installed."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] not in _ABSENT and name != "vllm.third_party.deep_gemm":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        module: Any = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _nothing(spec.name, name)
        module.__version__ = "0.0.0"
        return module

    def exec_module(self, module: Any) -> None:
        module.__path__ = []


def _nothing(module: str, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=f"{module}.{name}")


def _without_a_gpu(device: str = "meta") -> None:
    """Answer what asks CUDA and compiled extensions while a model is built."""
    import torch
    import vllm.platforms as platforms
    from torch._ops import _OpNamespace
    from vllm.model_executor.models import registry

    platform: Any = platforms._current_platform
    type(platform).current_device = classmethod(lambda cls: torch.device(device))
    type(platform).is_device_capability_family = classmethod(
        lambda cls, capability, device_id=0: (
            cls.get_device_capability().to_int() // 10 == capability // 10
        )
    )
    type(platform).is_arch_support_pdl = classmethod(lambda cls: False)
    find: Any = _OpNamespace.__getattr__

    def found(namespace: Any, name: str) -> Any:
        try:
            return find(namespace, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return MagicMock()

    ops: Any = _OpNamespace
    ops.__getattr__ = found
    asked: Any = registry
    asked._run_in_subprocess = lambda inspect: inspect()
    asked._try_inspect_model_cls = lambda name, model: model.inspect_model_cls()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: 0
    cuda.Stream = cuda.Event = MagicMock
    cuda.current_stream = cuda.get_device_properties = MagicMock()
    cuda.is_available = lambda: False
    attention: Any = sys.modules["vllm.vllm_flash_attn"]
    attention.__path__ = []
    sys.modules["vllm.vllm_flash_attn.flash_attn_interface"] = attention
    from vllm.v1.attention.backends import fa_utils, flash_attn

    for module in (fa_utils, flash_attn):
        module.flash_attn_supports_sinks = lambda: True
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
    from vllm.triton_utils import triton

    made: Any = ExpertMapManager.__init__

    def on_cpu(manager: Any, *args: Any, **more: Any) -> None:
        with torch.device("cpu"):  # it counts experts
            made(manager, *args, **more)

    ExpertMapManager.__init__ = on_cpu
    triton.Config = lambda *args, **more: types.SimpleNamespace(num_stages=1, num_warps=4)
    for name in ("vllm._flashkda_C", "vllm._C_cutlass", "vllm._moe_C"):
        sys.modules[name] = types.ModuleType(name)


_FILLED: dict[str, Any] = {
    **dict.fromkeys(("head_dim", "v_head_dim", "embed_dim", "output_dim", "dim"), 128),
    **dict.fromkeys(("rotary_dim", "qk_nope_head_dim", "kv_lora_rank"), 64),
    **dict.fromkeys(("image_size", "patch_size", "spatial_merge_size", "temporal_patch_size"), 16),
    **dict.fromkeys(("mla_scale_q_lora", "mla_scale_kv_lora", "tie_word_embeddings"), False),
    **dict.fromkeys(("norm_topk_prob", "route_norm"), True),
    **dict.fromkeys(("hc_eps", "rms_norm_eps", "layernorm_epsilon"), 1e-6),
    **dict.fromkeys(("score_func", "scoring_func"), "sigmoid"),
    **dict.fromkeys(("swa_num_attention_heads", "vit_hidden_size", "projector_hidden_size"), 64),
    **dict.fromkeys(("swa_num_key_value_heads", "mlp_ratio"), 8),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim"), 128),
    "downsample_ratio": 0.5,
    "force_image_size": 512,
    "img_token_compression_config": {},
    "use_rope2d": True,
    "sliding_window_size": 128,
    "deepstack_visual_indexes": [],
    "rope_theta": 10000.0,
    "hc_mult": 4,
}
"""Values for what a model file reads and its configuration lacks; nothing of the experts."""


def _fill(error: BaseException, filled: list[str]) -> bool:
    """Give a configuration's class what it lacks; False where the error is another one."""
    from transformers import PretrainedConfig

    if not isinstance(error, AttributeError) or not isinstance(error.obj, PretrainedConfig):
        return False
    name = str(error.name)
    if name in filled or "expert" in name or "moe" in name:
        return False
    filled.append(name)
    setattr(type(error.obj), name, _FILLED.get(name))
    return True


def _register(config: dict[str, Any]) -> None:
    """Let a configuration whose class comes with the checkpoint be read as it stands."""
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    kind = config.get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING and kind not in _CONFIG_REGISTRY:
        own: Any = type(f"{kind}_Config", (PretrainedConfig,), {"model_type": kind})
        AutoConfig.register(kind, own)


def _build(model_config: Any, vllm_config: Any, filled: list[str]) -> list[dict[str, Any]]:
    import torch
    from torch.overrides import TorchFunctionMode
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.model_loader.utils import initialize_model

    class OnMeta(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            kwargs = kwargs or {}
            if "cuda" in str(kwargs.get("device")):
                kwargs = {**kwargs, "device": "meta"}
            return func(*args, **kwargs)

    torch.set_default_dtype(torch.bfloat16)
    for _ in range(40):
        recorder = _Recorder()
        vllm_config.compilation_config.static_forward_context.clear()
        with (
            patch.object(RoutedExperts, "__init__", recorder(RoutedExperts.__init__)),
            set_current_vllm_config(vllm_config),
            torch.device("meta"),
            OnMeta(),
        ):
            try:
                initialize_model(vllm_config, model_config=model_config)
            except Exception as error:
                if _fill(error, filled):
                    continue
                if not recorder.layers:
                    raise
                break  # the language model was built first
            else:
                break
    return recorder.layers


def layers_of(question: dict[str, Any]) -> dict[str, Any]:
    """The layers of one model; or the error that vLLM ends with."""
    from vllm.engine.arg_utils import EngineArgs

    speculative = {"method": "mtp", "num_speculative_tokens": 1} if question.get("mtp") else None
    filled: list[str] = []
    _register(question["files"]["config.json"])
    with tempfile.TemporaryDirectory() as folder:
        for name, content in question["files"].items():
            (Path(folder) / name).write_text(json.dumps(content))
        try:
            engine = EngineArgs(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                enforce_eager=True,
                max_model_len=1024,
                tensor_parallel_size=question.get("tp", 1),
                enable_expert_parallel=question.get("ep", False),
                distributed_executor_backend="external_launcher",
                speculative_config=speculative,
                **question.get("flags", {}),
            ).create_engine_config()
            layers = _build(engine.model_config, engine, filled)
            if engine.speculative_config is not None:
                draft = engine.speculative_config.draft_model_config
                layers += [{"mtp": True, **layer} for layer in _build(draft, engine, filled)]
        except Exception as error:  # noqa: BLE001 - whatever vLLM raises is the answer
            trace = traceback.format_exc() if question.get("trace") else ""
            return {"error": f"{type(error).__name__}: {error}"[:600], "trace": trace}
        return {
            "architecture": engine.model_config.architecture,
            "layers": layers,
            "filled": filled,
        }


def ask(
    questions: list[dict[str, Any]], python: Sequence[str] = (sys.executable,), **machine: Any
) -> list[dict[str, Any]]:
    """Start this file as a program and give its answers; ``machine`` as in :func:`main`."""
    usual = {"capability": (12, 1), "flashinfer": True, "deep_gemm": False, "tp": 1}
    done = subprocess.run(
        [*python, __file__],
        input=json.dumps(usual | machine | {"questions": questions}),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    if not lines:
        raise SystemExit(done.stderr[-3000:])
    answers: list[dict[str, Any]] = json.loads(lines[0].removeprefix("ANSWERS"))
    return answers


def main() -> None:
    """Answer the questions on stdin, which share a GPU and a number of ranks."""
    asked = json.load(sys.stdin)
    os.environ["VLLM_CACHE_ROOT"] = tempfile.mkdtemp()  # what is found here is not the machine's
    os.environ["HF_HUB_OFFLINE"] = "1"
    pretend(*asked["capability"], flashinfer=asked["flashinfer"], deep_gemm=asked["deep_gemm"])
    import vllm.engine.arg_utils
    import vllm.entrypoints.llm  # noqa: F401 - before any package is pretended

    sys.meta_path.append(_Absent())
    _world(asked.get("tp", 1))
    _without_a_gpu()
    answers = [layers_of(question) for question in asked["questions"]]
    sys.stdout.write("ANSWERS" + json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
