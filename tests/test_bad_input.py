"""Bad input to the real command line: one clear line, the right exit code, nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.plan import default_study
from autotune.machine.devices import get_device, present_gpus
from autotune.store.database import VERSION_TABLE
from autotune.store.store import Store
from autotune.util.resources import data_root
from tests.support.commands import BAD, DONE, MISSING, NOTHING, Command, check

DEVICE_FILE = data_root() / "search_spaces" / "devices" / "gb10.yaml"
BINARY = Path(sys.executable).with_name("autotune")
GEMMA = shape_from_config(load_config("gemma-4-26b-a4b"))
STUDY = default_study(get_device("gb10"), GEMMA)
SIZES = "--experts 8 --intermediate 256 --hidden 512 --topk 2"
MOE: dict[str, object] = {
    "architectures": ["SomeMoeForCausalLM"],
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "hidden_size": 512,
}
FIELDS = {
    "BLOCK_SIZE_M": "[16]",
    "BLOCK_SIZE_N": "[64]",
    "BLOCK_SIZE_K": "[128]",
    "GROUP_SIZE_M": "[1]",
    "num_warps": "[4]",
    "num_stages": "[3]",
}

Files = dict[str, str | bytes]


@dataclass(frozen=True)
class Case:
    """``{t}`` in the arguments is the folder of the test; ``files`` are made there first."""

    id: str
    args: str | list[str]
    code: int
    words: tuple[str, ...]
    files: Files | None = None


def space(constraints: str = "", extra: str = "", **changed: str | None) -> Files:
    """A space file of one candidate, with some parameters changed (None: left out)."""
    lines = ["name: s", "title: t", "source: u", "parameters:"]
    for name, values in (FIELDS | changed).items():
        if values is not None:
            lines.append(f"  {name}: {{values: {values}, why: w}}")
    return {"s.yaml": "\n".join([*lines, f"constraints: [{constraints}]", extra])}


def config(**changed: object) -> Files:
    """A model's config.json with some keys changed (None: left out)."""
    values = {name: value for name, value in (MOE | changed).items() if value is not None}
    return {"config.json": json.dumps(values)}


def device(old: str, new: str) -> Files:
    """The file of the GB10 with one thing changed."""
    text = DEVICE_FILE.read_text()
    assert old in text
    return {"d.yaml": text.replace(old, new, 1)}


def quant(**values: object) -> Files:
    return config(quantization_config=values)


G = "moe --device gb10 "
S = G + "--space {t}/s.yaml"
M = G + "--model {t}"
R = G + "--routing {t}/r.json"
D = "moe --device {t}/d.yaml"
ONE_WEIGHT = {"weights": {"type": "int", "num_bits": 4}, "input_activations": None}

CASES = [
    # devices
    Case("unknown device", "moe --device abacus", BAD, ("no device 'abacus'", "known:", "gb10")),
    Case("close device", "moe --device gb-10", BAD, ("did you mean gb10?",)),
    Case("empty device", "moe --device=", BAD, ("no device ''", "known:")),
    Case("auto device without GPU", "moe --device auto", MISSING, ("--device auto", "nvidia-smi")),
    Case("device file absent", "moe --device {t}/d.yaml", BAD, ("d.yaml", "No such file")),
    Case("device file malformed", D, BAD, ("d.yaml:2", "not YAML"), {"d.yaml": "a: [1\nb: 2]:"}),
    Case("device without key", D, BAD, ("d.yaml", "sm_count"), device("sm_count: 48\n", "")),
    Case(
        "device wrong type", D, BAD, ("d.yaml:6: sm_count",), device("sm_count: 48", "sm_count: x")
    ),
    Case(
        "device negative", D, BAD, ("sm_count", "greater"), device("sm_count: 48", "sm_count: -1")
    ),
    Case(
        "device infinite",
        D,
        BAD,
        ("memory_bandwidth_gbs", "finite"),
        device("gbs: 218", "gbs: .inf"),
    ),
    Case(
        "device unknown key", D, BAD, ("colour",), device("sm_count: 48", "sm_count: 48\ncolour: 1")
    ),
    Case(
        "device without source",
        D,
        BAD,
        ("no source given for l2_b",),
        device("  l2_bytes: ", "  l: "),
    ),
    Case("device capability", D, BAD, ("compute_capability 'new'",), device('"12.1"', "new")),
    Case("device without bf16", D, BAD, ("hmma_bf16",), device("  hmma_bf16", "  hmma_bf17")),
    Case("device name is a path", D, BAD, ("d.yaml:1: name",), device("gb10", "../../gb10")),
    # models
    Case(
        "unknown model", G + "--model nowhere", BAD, ("--model nowhere", "presets:", "mixtral-8x7b")
    ),
    Case("empty model", G + "--model=", BAD, ("--model", "presets:")),
    Case("model of nobody", G + "--model ~nobody-here/x", BAD, ("--model ~nobody-here/x",)),
    Case("model with a long name", G + "--model " + "x" * 5000, BAD, ("name too long",)),
    Case("not a hub id", G + "--model a--b/c", BAD, ("--model a--b/c", "not a valid hub id")),
    Case("files: no model", "files {t}/x --device gb10", BAD, ("MODEL", "no such folder")),
    Case("folder without config", M, BAD, ("--model", "no such folder or config.json")),
    Case("config not JSON", M, BAD, ("config.json", "not JSON"), {"config.json": "{nope"}),
    Case("config too deep", M, BAD, ("config.json", "not JSON"), {"config.json": "[" * 100_000}),
    Case(
        "config not UTF-8", M, BAD, ("config.json", "not UTF-8"), {"config.json": b'{"a": "\xff"}'}
    ),
    Case("config no object", M, BAD, ("config.json", "object", "list"), {"config.json": "[]"}),
    Case("no experts", M, BAD, ("SomeMoeForCausalLM has no experts",), config(num_experts=None)),
    Case("experts as text", M, BAD, ("num_experts", "'8'"), config(num_experts="8")),
    Case(
        "width as float",
        M,
        BAD,
        ("moe_intermediate_size", "2.5"),
        config(moe_intermediate_size=2.5),
    ),
    Case("hidden infinite", M, BAD, ("config.json", "Infinity"), config(hidden_size=float("inf"))),
    Case("no topk", M, BAD, ("topk", "num_experts_per_tok"), config(num_experts_per_tok=None)),
    Case("topk above experts", M, BAD, ("topk 9", "8 experts"), config(num_experts_per_tok=9)),
    Case("hidden zero", M, BAD, ("hidden_size", "found 0"), config(hidden_size=0)),
    Case(
        "line break in a name",
        M,
        BAD,
        ("A B has no",),
        config(architectures=["A\nB"], num_experts=1),
    ),
    Case("quantisation no object", M, BAD, ("quantization_config",), config(quantization_config=3)),
    Case("nvfp4", M, BAD, ("NVFP4",), quant(quant_method="modelopt", quant_algo="NVFP4")),
    Case("mxfp4", M, BAD, ("mxfp4", "--dtype"), quant(quant_method="mxfp4")),
    Case("awq", M, BAD, ("awq", "int4_w4a16"), quant(quant_method="awq", bits=4)),
    Case(
        "4 bits",
        M,
        BAD,
        ("4-bit int",),
        quant(quant_method="compressed-tensors", config_groups={"a": ONE_WEIGHT}),
    ),
    Case(
        "odd block", M, BAD, ("[128] is not",), quant(quant_method="fp8", weight_block_size=[128])
    ),
    Case(
        "block does not divide",
        M + " --tp 16",
        BAD,
        ("block", "to 32 at the least", "--tp"),
        quant(quant_method="fp8", weight_block_size=[128, 128]),
    ),
    Case("tp does not divide", G + "--tp 3", BAD, ("--tp 3", "704", "1, 2, 4")),
    Case("ep does not divide", G + "--ep 3", BAD, ("--ep 3", "128", "1, 2, 4")),
    Case("tp zero", G + "--tp 0", BAD, ("--tp must be at least 1",)),
    Case("ep negative", G + "--ep=-1", BAD, ("--ep must be at least 1",)),
    Case("tp as text", G + "--tp two", BAD, ("--tp", "integer")),
    Case(
        "part of a shape",
        G + "--experts 8 --topk 2",
        BAD,
        ("--intermediate", "--hidden", "not given"),
    ),
    Case("model and sizes", G + "--model mixtral-8x7b " + SIZES, BAD, ("--model and --experts",)),
    Case("sizes: topk", G + SIZES + " --topk 9", BAD, ("topk 9", "8 experts")),
    Case("sizes: negative", G + SIZES + " --experts=-8", BAD, ("experts must be at least 1", "-8")),
    Case("sizes: zero", G + SIZES + " --hidden 0", BAD, ("hidden must be at least 1",)),
    Case("sizes: huge", G + SIZES + " --experts " + "9" * 20, BAD, ("experts must be at most",)),
    Case("sizes: text", G + SIZES + " --hidden wide", BAD, ("--hidden", "integer")),
    Case("unknown dtype", G + "--dtype fp3", BAD, ("--dtype fp3", "fp8_w8a8")),
    Case("sizes: unknown dtype", G + SIZES + " --dtype fp3", BAD, ("--dtype fp3", "int8_w8a8")),
    Case("unknown scheme", G + "--scheme row", BAD, ("--scheme row", "channel")),
    Case(
        "scheme of another dtype",
        G + "--dtype bf16 --scheme block",
        BAD,
        ("--scheme block", "bf16"),
    ),
    Case("no scheme for fp8", G + "--dtype fp8_w8a8 --scheme none", BAD, ("--scheme none",)),
    # the other flags
    Case("unknown effort", G + "--effort heroic", BAD, ("--effort heroic", "quick")),
    Case("unknown sampler", G + "--sampler dice", BAD, ("--sampler dice", "tpe")),
    Case("batch size zero", G + "--batch-sizes 0", BAD, ("--batch-sizes 0: expected 1 to",)),
    Case("batch size negative", G + "--batch-sizes 8,-4", BAD, ("--batch-sizes", "-4")),
    Case("batch size twice", G + "--batch-sizes 8,4,8", BAD, ("--batch-sizes", "8 is given twice")),
    Case("batch sizes empty", G + "--batch-sizes=", BAD, ("--batch-sizes", "1,8,64")),
    Case("batch size left out", G + "--batch-sizes 1,,2", BAD, ("--batch-sizes 1,,2",)),
    Case("batch sizes as text", G + "--batch-sizes many", BAD, ("--batch-sizes many",)),
    Case("batch size huge", G + "--batch-sizes 1048577", BAD, ("--batch-sizes", "1048577")),
    Case("batch size beyond all", G + "--batch-sizes " + "9" * 5000, BAD, ("--batch-sizes",)),
    Case("budget zero", G + "--budget 0", BAD, ("--budget 0",)),
    Case("budget without a unit", G + "--budget 10", BAD, ("--budget 10", "10m")),
    Case("budget negative", G + "--budget=-1", BAD, ("--budget -1", "10m")),
    Case("budget as text", G + "--budget soon", BAD, ("--budget soon", "10m")),
    Case("budget without end", G + "--budget " + "9" * 400, BAD, ("--budget",)),
    Case("gain as text", G + "--min-gain some", BAD, ("--min-gain some", "1%")),
    Case("gain above all", G + "--min-gain 150%", BAD, ("--min-gain 150%",)),
    Case("routing unknown", G + "--routing hot", BAD, ("--routing hot", "uniform", "zipf:1.1")),
    Case("routing empty", G + "--routing=", BAD, ("--routing ", "uniform")),
    Case("routing: zipf of nothing", G + "--routing zipf:", BAD, ("--routing zipf:", "zipf:1.1")),
    Case("routing: zipf negative", G + "--routing zipf:-1", BAD, ("--routing zipf:-1",)),
    Case("routing: zipf too steep", G + "--routing zipf:11", BAD, ("exponent", "at most 10")),
    Case("routing is a folder", G + "--routing {t}", BAD, ("--routing {t}", "JSON file")),
    Case("routing file absent", R, BAD, ("--routing {t}/r.json", "JSON file")),
    Case("routing not JSON", R, BAD, ("{t}/r.json", "not JSON"), {"r.json": "1 2"}),
    Case("routing not UTF-8", R, BAD, ("{t}/r.json", "not JSON"), {"r.json": b"[\xff]"}),
    Case("routing no list", R, BAD, ("r.json", "list of counts"), {"r.json": '{"0": 1}'}),
    Case("routing of texts", R, BAD, ("r.json", "list of counts"), {"r.json": '["1"]'}),
    Case("routing negative", R, BAD, ("r.json", "list of counts"), {"r.json": "[1, -1]"}),
    Case("routing not a number", R, BAD, ("r.json", "NaN is no number"), {"r.json": "[1, NaN]"}),
    Case("routing of nobody", R, BAD, ("r.json", "no expert was ever chosen"), {"r.json": "[0]"}),
    Case(
        "routing of another model",
        R,
        BAD,
        ("--routing {t}/r.json", "3 counts for 128 experts"),
        {"r.json": "[1, 2, 3]"},
    ),
    Case(
        "routing of one rank",
        R + " --ep 2",
        BAD,
        ("64 counts for 128 experts",),
        {"r.json": json.dumps([1] * 64)},
    ),
    Case("gamma negative", G + "--gamma=-1", BAD, ("--gamma -1: expected 0 to 64",)),
    Case("gamma huge", G + "--gamma 65", BAD, ("--gamma 65: expected 0 to 64",)),
    Case("gamma twice", G + "--gamma 2,4,2", BAD, ("--gamma", "2 is given twice")),
    Case("gamma as text", G + "--gamma some", BAD, ("--gamma some", "numbers")),
    Case("gamma as fraction", G + "--gamma 2.5", BAD, ("--gamma 2.5", "numbers")),
    Case("gamma empty", G + "--gamma=", BAD, ("--gamma", "numbers")),
    Case("concurrency zero", G + "--concurrency 0", BAD, ("--concurrency", "0: expected 1 to")),
    Case("concurrency huge", G + "--concurrency 65537", BAD, ("--concurrency", "65537")),
    Case("concurrency twice", G + "--gamma 2 --concurrency 8,8", BAD, ("--concurrency", "twice")),
    Case("concurrency as text", G + "--concurrency all", BAD, ("--concurrency all", "numbers")),
    Case("memory zero", G + "--memory-limit 0G", BAD, ("--memory-limit 0G", "512M or more")),
    Case("memory too little", G + "--memory-limit 511M", BAD, ("--memory-limit 511M", "512M")),
    Case("memory without a unit", G + "--memory-limit 16", BAD, ("--memory-limit 16", "16G")),
    Case("memory negative", G + "--memory-limit=-8G", BAD, ("--memory-limit -8G", "16G")),
    Case("memory as text", G + "--memory-limit most", BAD, ("--memory-limit most", "16G")),
    Case("memory empty", G + "--memory-limit=", BAD, ("--memory-limit", "16G")),
    Case("memory beyond all", G + "--memory-limit " + "9" * 400 + "G", BAD, ("--memory-limit",)),
    Case("seed negative", G + "--seed=-1", BAD, ("--seed -1",)),
    Case("no workers", G + "--workers 0", BAD, ("--workers 0", "1 to 1024")),
    Case("unknown option", G + "--bogus", BAD, ("No such option", "--bogus")),
    Case("misspelt option", G + "--bacth-sizes 1", BAD, ("--bacth-sizes", "--batch-sizes")),
    Case("no device given", "moe", BAD, ("Missing option", "--device")),
    Case("option without value", "moe --device", BAD, ("--device",)),
    Case("extra argument", G + "more", BAD, ("more",)),
    Case("unknown command", "tune", BAD, ("No such command 'tune'",)),
    Case("show what", "show", BAD, ("Missing argument",)),
    Case("doctor of an unknown device", "doctor --device abacus", BAD, ("no device 'abacus'",)),
    # spaces
    Case("unknown space", G + "--space narrow", BAD, ("no space 'narrow'", "stock")),
    Case("space file absent", S, BAD, ("s.yaml", "No such file")),
    Case("space is a folder", S, BAD, ("s.yaml", "directory"), {"s.yaml/x": ""}),
    Case("space: syntax", S, BAD, ("s.yaml:3:", "not YAML"), {"s.yaml": "name: s\nx:\n\t- a\n"}),
    Case("space: empty file", S, BAD, ("s.yaml:1:", "mapping"), {"s.yaml": ""}),
    Case("space: no words", S, BAD, ("s.yaml:1:", "mapping"), {"s.yaml": "- a\n"}),
    Case("space: not UTF-8", S, BAD, ("s.yaml", "not UTF-8"), {"s.yaml": b"name: \xff\n"}),
    Case("space: key twice", S, BAD, ("s.yaml:12: name", "twice"), space(extra="name: again")),
    Case("space: list as a key", S, BAD, ("s.yaml:12",), space(extra="? [a, b]\n: c")),
    Case("space: no such date", S, BAD, ("s.yaml", "not YAML"), space(extra="when: 2024-13-45")),
    Case("space: too deep", S, BAD, ("s.yaml", "nested"), {"s.yaml": "a: " + "[" * 5000}),
    Case("space: endless alias", S, BAD, ("s.yaml",), space(extra="loop: &a [*a]")),
    Case("space: unknown key", S, BAD, ("s.yaml:12: colour",), space(extra="colour: red")),
    Case("space: no values", S, BAD, ("s.yaml:9: parameters.num_warps",), space(num_warps="[]")),
    Case("space: null", S, BAD, ("s.yaml:9: parameters.num_warps",), space(num_warps="null")),
    Case("space: twice", S, BAD, ("s.yaml:9: ", "4 is listed twice"), space(num_warps="[4, 8, 4]")),
    Case("space: float", S, BAD, ("num_warps.values.0", "integer"), space(num_warps="[4.5]")),
    Case("space: text", S, BAD, ("s.yaml:4", "num_warps: 'four'"), space(num_warps="[four]")),
    Case("space: zero", S, BAD, ("num_warps: 0 is not",), space(num_warps="[0]")),
    Case("space: truth", S, BAD, ("num_warps: True is not",), space(num_warps="[true]")),
    Case("space: parameter missing", S, BAD, ("num_warps is missing",), space(num_warps=None)),
    Case("space: parameter unknown", S, BAD, ("'SPLIT_K'", "num_warps"), space(SPLIT_K="[1]")),
    Case("space: unknown constraint", S, BAD, ("constraint 'fits_all'",), space("fits_all")),
    Case(
        "space: too many candidates",
        S,
        BAD,
        ("s.yaml", "candidates are more than"),
        space(
            GROUP_SIZE_M=str([*range(1, 1001)]),
            num_stages=str([*range(1, 1001)]),
            num_warps="[4, 8]",
        ),
    ),
    Case(
        "nothing feasible",
        S,
        NOTHING,
        ("none of its 1 candidates", "fits_shared_memory"),
        space("fits_shared_memory", BLOCK_SIZE_M="[65536]"),
    ),
    # places
    Case("out is a file", G + "--out {t}/f", BAD, ("{t}/f/", "--out"), {"f": "kept"}),
    Case("out in a file", G + "--out {t}/f/x", BAD, ("{t}/f/x/", "--out"), {"f": "kept"}),
    Case("out in /proc", G + "--out /proc/x", BAD, ("/proc/x", "--out")),
    Case("study empty", G + "--study=", BAD, ("--study ''",)),
    Case("study blank", [*G.split(), "--study", "  "], BAD, ("--study '  '",)),
    Case("study leads out", G + "--study ../../x", BAD, ("--study '../../x'",)),
    Case("db not SQLite", G + "--db postgresql://u:secret@h/d", BAD, ("only SQLite", "postgresql")),
    Case("db no URL", G + "--db outputs.db", BAD, ("'outputs.db'", "sqlite:///outputs.db")),
    Case("db in memory", G + "--db sqlite://", BAD, ("must name a file",)),
    Case("db is a folder", G + "--db sqlite:///{t}", BAD, ("{t}: is a folder",)),
    Case(
        "db is a text",
        G + "--db sqlite:///{t}/f",
        BAD,
        ("{t}/f", "not a SQLite"),
        {"f": "words " * 99},
    ),
    Case("db below a file", G + "--db sqlite:///{t}/f/x", MISSING, ("{t}/f",), {"f": "kept"}),
    Case("db in /proc", G + "--db sqlite:////proc/x/a.db", MISSING, ("/proc/x",)),
    Case(
        "studies: no db", "studies --db sqlite:///{t}/none.db", BAD, ("none.db", "no such database")
    ),
    Case("show: no db", "show x --db sqlite:///{t}/none.db --json", BAD, ("none.db", "no such")),
    Case("show: unknown study", "show nothing", BAD, ("no study 'nothing'", STUDY)),
    Case("show: close study", f"show {STUDY}x", BAD, (f"did you mean '{STUDY}'",)),
    Case("show: not a name", ["show", "\udcff"], BAD, ("\\udcff", "not UTF-8")),
    Case(
        "another shape", G + f"--study {STUDY} --tp 2", BAD, (STUDY, "another", "shape", "--study")
    ),
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with the study that the defaults would go on with."""
    path = tmp_path_factory.mktemp("kept") / "a.db"
    with Store.open(f"sqlite:///{path}") as store:
        identity = {"device": "gb10", "shape": GEMMA.as_json()}
        store.search(store.study(STUDY, "moe", identity), {"seed": 0})
    return path.read_bytes()


@pytest.fixture
def place(tmp_path: Path, kept: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a database where the defaults look; it must stay as it is."""
    folder = tmp_path / "work"
    database = folder / "outputs" / "autotune.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(kept)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    yield tmp_path
    assert database.read_bytes() == kept
    assert not database.with_name("autotune.db-wal").exists()


@pytest.fixture
def command(place: Path, monkeypatch: pytest.MonkeyPatch, in_process: Command) -> Command:
    """The command line in this process, which must not come as far as compiling."""

    def no_compiling(*_: object) -> None:
        raise AssertionError("it came as far as compiling")

    monkeypatch.setattr("autotune.kernels.compile.processes.compile_pool", no_compiling)
    monkeypatch.setattr("autotune.kernels.check.doctor.compile_pool", no_compiling)
    return in_process


def lay(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def filled(case: Case, folder: Path) -> tuple[list[str], list[str]]:
    given = case.args.split() if isinstance(case.args, str) else case.args
    here = str(folder)
    return [a.replace("{t}", here) for a in given], [w.replace("{t}", here) for w in case.words]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, place: Path, command: Command) -> None:
    lay(place, case.files or {})
    args, words = filled(case, place)
    check(command(*args), case.code, *words)
    if case.files == {"f": "kept"}:
        assert (place / "f").read_text() == "kept"


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 45
    assert len({case.id for case in CASES}) == len(CASES)


def test_no_command_shows_the_help(command: Command) -> None:
    code, out, err = command()
    assert (code, err) == (BAD, "autotune: name a command\n")
    assert "moe" in out


# --------------------------------------------------------------------------------- databases


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")


def newer(path: Path) -> None:
    with Store.open(f"sqlite:///{path}"):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")


def damaged(path: Path) -> None:
    newer(path)
    data = bytearray(path.read_bytes())
    data[100:2000] = b"\xee" * 1900
    path.write_bytes(data)


@pytest.mark.parametrize("arguments", [G, "studies", "studies --json", f"show {STUDY}"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (foreign, ("another program", "photos")),
        (newer, ("newer version", "9999", "upgrade")),
        (damaged, ("is damaged",)),
    ],
    ids=["foreign", "newer", "damaged"],
)
def test_a_database_that_is_not_ours(
    make: Callable[[Path], None],
    words: tuple[str, ...],
    arguments: str,
    place: Path,
    command: Command,
) -> None:
    path = place / "a.db"
    make(path)
    before = path.read_bytes()
    check(command(*arguments.split(), "--db", f"sqlite:///{path}"), BAD, str(path), *words)
    assert path.read_bytes() == before


def test_a_study_that_another_process_tunes(place: Path, command: Command) -> None:
    code = (
        "import sys; from pathlib import Path; from autotune.store.study_lock import hold;"
        "from autotune.store.store import utc_now\n"
        "with hold(Path(sys.argv[1]), sys.argv[2], utc_now()): print('held', flush=True); input()"
    )
    database = Path("outputs/autotune.db").absolute()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(database), STUDY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        got = command(*G.split())
        holder.communicate("\n")
    check(got, BAD, f"study '{STUDY}' is being tuned", f"process {holder.pid}", "--study")


@contextmanager
def mounted(folder: Path, kilobytes: int) -> Iterator[None]:
    """A small file system; skips where it cannot be had."""
    folder.mkdir()
    mount, umount = shutil.which("mount", path=os.defpath), shutil.which("umount", path=os.defpath)
    if mount is None or umount is None:
        pytest.skip("mount is not installed")
    options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
    done = subprocess.run([mount, *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([umount, "-l", str(folder)], check=True)


def test_a_read_only_place(place: Path, command: Command, kept: bytes) -> None:
    disk = place / "disk"
    with mounted(disk, 1024):
        (disk / "a.db").write_bytes(kept)
        remount = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(remount, check=True, env={"PATH": os.defpath})
        check(command(*G.split(), "--db", f"sqlite:///{disk}/a.db"), MISSING, f"{disk}/a.db")
        check(command(*G.split(), "--db", f"sqlite:///{disk}/b.db"), MISSING, str(disk))
        check(command(*G.split(), "--out", str(disk)), BAD, str(disk), "Read-only", "--out")
        assert (disk / "a.db").read_bytes() == kept


def test_a_full_disk(place: Path, command: Command) -> None:
    disk = place / "disk"
    with mounted(disk, 16):
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        check(command(*G.split(), "--out", str(disk)), MISSING, str(disk), "No space left")
        url = f"sqlite:///{disk}/a.db"
        check(command(*G.split(), "--db", url), MISSING, f"{disk}/a.db", "space")
        assert (disk / "filler").stat().st_size > 0


# --------------------------------------------------------------------------- real processes


def real(*args: str, hidden: str = "", **environment: str) -> tuple[int, str, str]:
    """`autotune` as users start it; with ``hidden``, a module that cannot be found."""
    program = [str(BINARY)]
    if hidden:
        code = (
            "import importlib.util as u, sys; f = u.find_spec\n"
            f"u.find_spec = lambda n, *a: None if n.split('.')[0] == {hidden!r} else f(n, *a)\n"
            "from autotune.cli import main; main()"
        )
        program = [sys.executable, "-c", code]
    done = subprocess.run(
        [*program, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ) | environment,
    )
    return done.returncode, done.stdout, done.stderr


REAL = {"space: key twice", "no device given"}
"""One that the command finds and one that the parser does."""


@pytest.mark.parametrize("case", [c for c in CASES if c.id in REAL], ids=lambda case: case.id)
def test_the_installed_program(case: Case, place: Path) -> None:
    lay(place, case.files or {})
    args, words = filled(case, place)
    check(real(*args, COLUMNS="40"), case.code, *words)


def test_the_hub_when_offline(place: Path) -> None:
    got = real(*G.split(), "--model", "org/name", HF_HUB_OFFLINE="1", HF_HOME=str(place))
    check(got, MISSING, "--model org/name", "cannot be reached")


def test_without_vllm(place: Path) -> None:
    check(real(*G.split(), hidden="vllm"), MISSING, "vLLM is not installed", "install it")


def test_bytes_that_are_no_text(place: Path) -> None:
    check(real(*G.split(), "--out", os.fsdecode(b"\xff")), BAD, "udcff", "not UTF-8")


@pytest.mark.parametrize("arguments", ["devices", "--help"])
def test_stdout_that_takes_nothing(arguments: str, place: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [str(BINARY), *arguments.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=300,
        )
    check((done.returncode, "", done.stderr), MISSING, "No space left")


def test_a_reader_that_goes_away(place: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run(
            [str(BINARY), "devices"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=300,
        )
    assert (done.returncode, done.stderr) == (DONE, "")


def test_interrupted(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("autotune.machine.devices.load_devices", interrupt)
    check(command(*G.split()), 130, "interrupted", "the same command goes on")


# ------------------------------------------------------------------- a machine with GPUs


def show_gpus(place: Path, *names: str) -> None:
    """An nvidia-smi that shows GPUs of these names."""
    program = place / "nvidia-smi"
    rows = "".join(f"echo '{name}, GPU-{n}, 570.1, 143771, 9.0'\n" for n, name in enumerate(names))
    program.write_text("#!/bin/sh\n" + rows)
    program.chmod(0o755)


@pytest.mark.parametrize(
    "visible", ["MIG-GPU-0/1/0", "0,MIG-1", "all", "-1", "0;1", "0.5", "void\n1"]
)
def test_gpus_named_in_a_way_that_is_not_understood(
    visible: str, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpus(place, "NVIDIA H200", "NVIDIA H200")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    said = f"CUDA_VISIBLE_DEVICES={visible}".replace("\n", " ")
    for device_flag in ("h200", "auto"):
        check(command("moe", "--device", device_flag), BAD, said, "ind", "UUID", "nvidia-smi")


def test_the_installed_program_with_gpus(place: Path) -> None:
    show_gpus(place, "NVIDIA H200")
    got = real("moe", "--device", "auto", CUDA_VISIBLE_DEVICES="all")
    check(got, BAD, "CUDA_VISIBLE_DEVICES=all", "such as 0")


@pytest.mark.parametrize("visible", ["", "1"])
def test_no_gpu_that_may_be_used(
    visible: str, place: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpus(place, "NVIDIA H200")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    words = (f"CUDA_VISIBLE_DEVICES={visible} leaves none of the 1", "such as --device gb10")
    for arguments in ("moe --device auto", "moe --device auto --predict", "doctor --device auto"):
        check(command(*arguments.split()), MISSING, *words)


def test_keys_that_would_be_lost(place: Path, command: Command, kept: bytes) -> None:
    """A file of the same study, made under another setup: refused before anything is tuned."""
    folder = Path("outputs") / STUDY / "predicted"
    folder.mkdir(parents=True)
    path = folder / GEMMA.config_file_name("NVIDIA_GB10")
    row = dict.fromkeys(FIELDS, 16)
    path.write_text(json.dumps({"1": row, "4096": row, "8192": row}))
    (folder / "provenance.json").write_text(json.dumps({"setup": {"triton": "3.6.0"}}))
    got = command(*G.split())
    check(got, BAD, f"{path}: would lose M=8192", "triton (3.6.0, now ", "--batch-sizes 1,2,4,")
    assert set(json.loads(path.read_text())) == {"1", "4096", "8192"}


def test_a_gpu_that_no_file_describes(place: Path, command: Command) -> None:
    show_gpus(place, "ACME Abacus 9000")
    check(command("moe", "--device", "auto"), BAD, "'ACME Abacus 9000'", "--device")


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, (0, 1, 2)),
        ("0", (0,)),
        ("2,0", (0, 2)),
        (" 1 , ", (1,)),
        ("", ()),
        ("7", ()),
    ],
)
def test_the_gpus_that_may_be_used(
    visible: str | None, indices: tuple[int, ...], place: Path
) -> None:
    show_gpus(place, "NVIDIA H200", "NVIDIA H200", "NVIDIA H200")
    found = present_gpus(get_device("h200"), visible)
    assert tuple(gpu.index for gpu in found) == indices
    # On a machine without the device, how its GPUs are named does not matter.
    assert present_gpus(get_device("gb10"), "GPU-0") == ()
