"""Who may import what: read off the source, and once off a running interpreter."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import autotune

PACKAGE = Path(autotune.__file__).parent
STORE = {"store", "models", "database", "catalogue", "compile_cache", "records", "studylock"}
WORKER = {"moe.compile_worker", "moe.kernel_source"}
"""Modules of which functions run in worker processes, and import torch and Triton there."""

MEASURING = {"moe.kernel", "moe.problem"}
"""Modules that only measuring processes load, by name; with torch at the top."""


@dataclass(frozen=True)
class Import:
    """An import of ``what`` (the module's full name) and whether it is inside a function."""

    what: str
    deferred: bool

    @property
    def top(self) -> str:
        return self.what.partition(".")[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}

COMMANDS = {module for module in MODULES if module.split(".")[0] == "cli"}
TERMINAL = COMMANDS | {"consoles", "overview", "moe.terminal", "spec.terminal"}
"""Modules that talk to a person; nothing else imports them."""


def imports_in(source: str, module: str = "") -> frozenset[Import]:
    found: set[Import] = set()

    def walk(node: ast.AST, deferred: bool) -> None:
        if isinstance(node, ast.Import):
            found.update(Import(alias.name, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # ``from autotune import x`` may import the module x: both are counted.
            assert node.level == 0, f"{module}: relative imports are not followed here"
            what = node.module or ""
            found.add(Import(what, deferred))
            found.update(Import(f"{what}.{alias.name}", deferred) for alias in node.names)
        deferred |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, deferred)

    walk(ast.parse(source), deferred=False)
    return frozenset(found)


@functools.cache
def imports(module: str) -> frozenset[Import]:
    return imports_in(MODULES[module].read_text(), module)


def importers(top: str) -> set[str]:
    return {module for module in MODULES if any(i.top == top for i in imports(module))}


def ours(module: str) -> set[str]:
    """Modules of the project that ``module`` imports, wherever in the file."""
    return {
        what
        for i in imports(module)
        if i.top == "autotune" and (what := i.what.removeprefix("autotune.")) in MODULES
    }


def test_the_walk_sees_every_kind_of_import() -> None:
    source = (
        "import a.b\nfrom c import d as e\n"
        "if True:\n    import f\n"
        "class C:\n    import g\n    def m(self):\n        from h import i\n"
    )
    found = {(i.what, i.deferred) for i in imports_in(source)}
    now = {"a.b", "c", "c.d", "f", "g"}
    assert found == {(what, False) for what in now} | {("h", True), ("h.i", True)}
    assert {"core", "tune", "cli", "moe.job", "moe"} <= set(MODULES)
    assert "core" in ours("tune")


def test_core_needs_the_standard_library_alone() -> None:
    assert {i.top for i in imports("core")} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        # The mirror writes what optuna-dashboard opens, and nothing reads it back.
        ("optuna", {"propose", "mirror"}),
        ("optuna_dashboard", {"dashboard"}),
        ("plotly", {"page.plots", "page.render"}),
        ("sqlalchemy", STORE),
        ("alembic", STORE),
        ("sqlite3", STORE),
        ("pebble", {"worker"}),
        ("pandas", {"replay"}),
        ("yaml", {"yamlfile"}),
        ("typer", TERMINAL),
        ("rich", TERMINAL),
        ("torch", WORKER | MEASURING),
        ("triton", WORKER | MEASURING),
        ("vllm", WORKER | MEASURING),
    ],
)
def test_each_package_has_its_place(package: str, allowed: set[str]) -> None:
    assert importers(package) <= allowed


@pytest.mark.parametrize("package", ["torch", "triton", "vllm"])
def test_workers_import_only_inside_functions(package: str) -> None:
    at_once = {m for m in MODULES if any(i.top == package and not i.deferred for i in imports(m))}
    assert at_once <= MEASURING


def test_nobody_imports_what_holds_a_gpu() -> None:
    assert {m for m in MODULES if ours(m) & MEASURING} <= MEASURING


def test_nobody_imports_the_command_line() -> None:
    assert {m for m in MODULES if ours(m) & COMMANDS} <= COMMANDS | {"__main__"}
    assert {m for m in MODULES if ours(m) & TERMINAL} <= TERMINAL | {"__main__"}


def test_the_halves_do_not_know_each_other() -> None:
    for half, other in (("moe", "spec"), ("spec", "moe")):
        for module in MODULES:
            if module.split(".")[0] == half:
                assert not {m for m in ours(module) if m.split(".")[0] == other}


def test_what_is_shared_knows_neither_half() -> None:
    halves = {"moe", "spec", "serve"}
    for module in MODULES:
        if module.split(".")[0] not in halves | TERMINAL | {"__main__"}:
            assert not {m for m in ours(module) if m.split(".")[0] in halves}, module


def test_proposing_measuring_and_storing_are_apart() -> None:
    parts = [{"propose"}, {"replay", "worker", "moe.measurer"}, STORE - {"records"}]
    for part in parts:
        for module in part & set(MODULES):
            others = set().union(*(p for p in parts if p != part))
            assert not ours(module) & others, module


def test_the_loop_and_the_choice_know_only_the_words() -> None:
    assert ours("tune") == {"core"}
    assert ours("selection") == {"core", "stats"}
    assert ours("stats") == set()


def test_imports_have_no_cycle() -> None:
    """Among imports that happen when a module is loaded."""
    seen: dict[str, bool] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if seen.get(module):
            return
        for i in imports(module):
            what = i.what.removeprefix("autotune.")
            if what == module:  # a package that loads its own parts
                continue
            typing_only = (module, what) == ("moe.compile_worker", "moe.compile")
            if i.top == "autotune" and not i.deferred and what in MODULES and not typing_only:
                visit(what, (*trail, module))
        seen[module] = True

    for module in MODULES:
        visit(module, ())


def test_the_command_line_starts_without_the_heavy_packages() -> None:
    script = "import sys, autotune.cli; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "autotune" in loaded
    heavy = {"torch", "triton", "vllm", "optuna", "pandas", "transformers", "scipy"}
    heavy |= {"plotly", "jinja2", "optuna_dashboard"}
    assert not loaded & heavy


def test_a_plan_is_made_without_torch() -> None:
    """Workers alone import torch and Triton; the parent never does."""
    modules = [m for m in MODULES if m and m not in MEASURING | {"__main__"}]
    script = (
        "import sys, importlib\n"
        f"for m in {modules}: importlib.import_module('autotune.' + m)\n"
        "print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "optuna" in loaded
    assert not loaded & {"torch", "triton", "vllm"}
