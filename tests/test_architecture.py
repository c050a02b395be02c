"""Who may import whom: read off the source, and once off a running interpreter."""

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
BASE = {"core", "util", "engine", "tune", "stopwatch", "kind"}
SHARED = {"space", "propose", "measure", "store", "decide", "report", "export", "machine"}
SHARED |= {"cluster"}

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "util": {"core"},
    "engine": {"core", "util"},
    "tune": {"core"},
    "stopwatch": {"core", "tune"},
    "kind": {"core", "tune", "store", "report"},
    "space": {"core", "util"},
    "propose": {"core", "util", "space"},
    "measure": {"core", "util", "machine"},
    "cluster": {"core", "util", "machine", "measure"},
    "decide": {"core", "util"},
    "export": {"core", "util"},
    "machine": {"core", "util", "engine"},
    "store": {"core", "util", "machine"},
    "report": {"core", "util", "store", "decide", "export", "kind"},
    "kernels": BASE | SHARED,
    "serving": BASE | SHARED,
    "cli": BASE | SHARED | {"kernels", "serving", "web"},
    "web": BASE | SHARED | {"kernels", "serving", "cli"},
}
"""Each room of the house and the rooms that it may use; its own modules go without saying."""

ROOM_OF: dict[str, set[str]] = {
    "optuna": {"propose", "report.optuna_mirror"},
    "optuna_dashboard": {"report.dashboard"},
    "plotly": {"report.plots", "report.render"},
    "jinja2": {"report.render", "kernels.export.upstream", "web"},
    "fastapi": {"web"},
    "starlette": {"web"},
    "uvicorn": {"web"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "sqlite3": {"store"},
    "pebble": {"measure.pool"},
    "pandas": {"measure.replay", "store.frames"},
    "yaml": {"util.yamlfile"},
    "typer": {"cli"},
    "rich": {"cli", "report.terminal"},
    "torch": {"kernels.compile", "kernels.measure"},
    "triton": {"kernels.compile", "kernels.measure"},
    "ray": {
        "cluster.connect",
        "cluster.actors",
        "serving.cluster.groups",
        "serving.cluster.plugin",
    },
    "vllm": {"kernels.compile", "kernels.measure", "serving.dial.plugin"},
}
"""The rooms or modules that may import a library; all others use what those offer."""

MEASURING = {"kernels.measure.process", "kernels.measure.problem"}
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


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


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
    assert {"core", "tune", "cli", "kernels.job", "serving"} <= set(MODULES)
    assert "core" in ours("tune")


def test_every_room_stands_in_the_table() -> None:
    rooms = {room(module) for module in MODULES} - {"", "__main__"}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("module", [m for m in MODULES if m and m != "__main__"])
def test_a_module_imports_from_the_rooms_that_it_may_use(module: str) -> None:
    used = {room(what) for what in ours(module)} - {room(module), ""}
    assert used <= MAY_IMPORT[room(module)], module


def kinds_compared_in(source: str) -> list[str]:
    """Comparisons of something's kind with a kind's name as text, or with texts."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(getattr(part, "value", "") in ("moe", "spec") for part in ast.walk(node))
        and any("kind" in (getattr(p, "attr", ""), getattr(p, "id", "")) for p in ast.walk(node))
    ]


def test_nobody_compares_a_kind_with_a_text() -> None:
    """A third kind is an entry of ``kind._MODULES``; what differs by kind asks ``kind.get``."""
    assert kinds_compared_in("a.kind == 'moe' or kind in ('spec',)\nfamily == 'moe'") == [
        "a.kind == 'moe'",
        "kind in ('spec',)",
    ]
    for module, path in MODULES.items():
        assert not kinds_compared_in(path.read_text()), module


def test_core_needs_the_standard_library_alone() -> None:
    assert {i.top for i in imports("core")} <= sys.stdlib_module_names


@pytest.mark.parametrize("package", ROOM_OF)
def test_each_library_has_its_room(package: str) -> None:
    importers = {m for m in MODULES if any(i.top == package for i in imports(m))}
    allowed = ROOM_OF[package]
    outside = {m for m in importers if not any(m == a or m.startswith(f"{a}.") for a in allowed)}
    assert not outside


@pytest.mark.parametrize("package", ["torch", "triton", "vllm"])
def test_workers_import_only_inside_functions(package: str) -> None:
    at_once = {m for m in MODULES if any(i.top == package and not i.deferred for i in imports(m))}
    assert at_once <= MEASURING


def test_nobody_imports_what_holds_a_gpu() -> None:
    assert {m for m in MODULES if ours(m) & MEASURING} <= MEASURING


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
            typing_only = (module, what) == ("kernels.compile.worker", "kernels.compile.job")
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
    heavy |= {
        "aiohttp",
        "sqlalchemy",
        "numpy",
        "plotly",
        "jinja2",
        "optuna_dashboard",
        "fastapi",
        "uvicorn",
        "starlette",
    }
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


# ------------------------------------------------------------------------------------------
# the edges: one way to open, one way to fetch (docs/security.md)

READS = {"read_text", "read_bytes", "read_csv", "read_parquet", "read_pickle", "fdopen", "open"}
READS |= {"model_validate_json", "validate_json", "safe_load", "fromfile"}
PARSERS = {"json", "yaml", "tomllib", "pickle", "numpy", "np", "torch", "csv", "sqlite3", "marshal"}
"""Whose ``load``, ``loads``, ``reader`` or ``connect`` lets a file or a text in."""
LOADS = {"load", "loads", "reader", "connect", "compose", "parse", "SafeLoader"}
OUR_OWN = {"edge", "Store", "Checkout", "webbrowser"}
"""What has an ``open`` of its own, which goes through the edge or opens no file."""
OPENS: dict[str, str] = {
    "util.edge": "the edge itself",
    "util.yamlfile": "parses YAML, within a budget, of what the edge has read",
    "util.lockfile": "opens locks, which it makes, and the note in them",
    "util.request": "JSON of a request of ours: pydantic's own parser, checked by the model",
    "util.secret": "JSON inside a flag of this command line",
    "export.files": "writes",
    "store.database": "SQLite reads its file, after the edge has looked at it",
    "store.compile_cache": "JSON that it has just written",
    "machine.environment": "the installed torch",
    "machine.memory": "/proc and /sys of this machine",
    "kernels.compile.kernel_source": "the installed vLLM",
    "kernels.compile.worker": "what the compiler printed in this process",
    "kernels.measure.process": "writes its own log",
    "kernels.cluster": "kernels and last words of processes of ours, in its own folder",
    "kernels.measure.processes": "the last words of a process of ours, in its own folder",
    "measure.replay": "parses tables, of bytes that the edge has read",
    "serving.dial.dial": "writes the plugin and the byte that turns gamma",
    "serving.dial.plugin": "the byte, in a server's process",
    "serving.server.process": "writes a server's log",
    "serving.cluster.node": "a server's log, a part at a time, to where the command runs",
    "serving.cluster.groups": "writes what a node sends of a server's log",
    "serving.server.plugins": "the source of a plugin of ours",
    "serving.server.supervisor": "its own arguments, from the process that starts it",
    "serving.measure.tasks": "writes lm-eval's log",
    "serving.recipe": "JSON of a schedule of ours",
    "serving.logs.read": "JSON in one cut line of a log that the edge has read",
    "machine.devices": "what nvidia-smi prints",
    "machine.driver": "what the process of its own prints, which asks libcuda",
    "report.render": "JSON that plotly has just made",
    "cli.__init__": "/dev/null",
    "web.folders": "files of jobs, which the service and its jobs write",
    "web.runner": "writes a job's log",
    "web.stream": "the log and the events of a job, a part at a time",
    "web.token": "writes a token that it has made",
    "cli.events": "adds lines to a file that the user names",
}
"""Modules that open or parse without the edge, and why they may. A new one needs a reason."""

FETCHES = {"aiohttp", "urllib.request", "http.client", "http.server", "httpx", "requests"}
FETCHES |= {"socket", "socketserver", "wsgiref", "ftplib", "huggingface_hub", "websockets"}
MAY_FETCH = {
    "serving.server.web": {"aiohttp"},
    "serving.server.launchers": {"socket"},  # looks for a free port
    "engine.hub": {"huggingface_hub"},
    "serving.server.mounts": {"huggingface_hub"},  # where its cache lies
    "cluster.connect": {"socket"},  # whether a cluster answers where the operator says
    "web.serve": {"socket"},  # listens where the operator says
    "report.dashboard": {"socketserver", "wsgiref"},  # listens on 127.0.0.1
}
"""Modules that speak to a network, and by what."""


def reads_in(source: str) -> set[str]:
    """The calls by which a module lets a file or a text in, except through the edge."""
    found = set()
    tree = ast.parse(source)
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            base = node.value
            name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
            loads = node.attr in LOADS and name in PARSERS
            reads = node.attr in READS and name not in OUR_OWN
            if loads or (reads and (node.attr != "open" or node in called)):
                found.add(node.attr)
        elif isinstance(node, ast.Name) and node.id == "open" and node in called:
            found.add("open")
        elif isinstance(node, ast.ImportFrom) and node.module in PARSERS:
            found |= {alias.name for alias in node.names} & LOADS
    return found


def test_the_walk_sees_every_way_in() -> None:
    source = (
        "from json import loads\nimport yaml\nopen('a')\nPath('b').read_text()\nos.fdopen(1)\n"
        "parse = yaml.safe_load\nwith p.open() as f: pass\nedge.read_json(p)\nStore.open(u)\n"
    )
    assert reads_in(source) == {"loads", "open", "read_text", "fdopen", "safe_load"}


def test_nobody_but_the_edge_opens_or_parses_what_others_wrote() -> None:
    """A reader that opens a file itself has none of the edge's limits, so it is named here."""
    reading = {m for m in MODULES if reads_in(MODULES[m].read_text())}
    names = {m if m != "cli" else "cli.__init__" for m in reading}
    assert names == set(OPENS)


def test_nobody_but_the_edge_speaks_to_a_network() -> None:
    speaking: dict[str, set[str]] = {}
    for module in MODULES:
        for i in imports(module):
            name = next((f for f in FETCHES if i.what == f or i.what.startswith(f"{f}.")), None)
            if name is not None:
                speaking.setdefault(module, set()).add(name)
    assert speaking == MAY_FETCH


def test_a_session_is_made_and_used_in_one_place() -> None:
    """Redirects, proxies, cookies and limits are decided in ``serving.server.web`` alone."""
    for module in set(MODULES) - {"serving.server.web"}:
        source = MODULES[module].read_text()
        assert "ClientSession(" not in source, module
        assert "allow_redirects" not in source, module
