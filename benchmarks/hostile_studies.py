"""More inputs of ``benchmarks/hostile_round.py``: databases, bundles, results, checkouts."""

from __future__ import annotations

import functools
import gzip
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from autotune.kernels.export.upstream import KERNEL_FILE
from autotune.store.bundle import packed
from autotune.store.sharing import make_bundle
from autotune.store.store import Store
from autotune.util.anonymous import Anonymous
from benchmarks.hostile_more import GOOD_MODEL, MOE
from benchmarks.hostile_sources import GOOD, Input, Place, at
from tests.kernels.kept_study import KEPT, NAME, PERSON, SMALL, checkout, git
from tests.support.hostile_files import NO_FILES, TEXTS, VALUES, of

# ------------------------------------------------------------------------------------------
# databases

DEEP = "[" * 5000 + "]" * 5000
CHANGES: tuple[str, ...] = (
    "UPDATE measurements SET value = 'x' WHERE outcome = 'ok'",
    "UPDATE measurements SET value = 9e999 WHERE outcome = 'ok'",
    "UPDATE measurements SET value = -1 WHERE outcome = 'ok'",
    "UPDATE measurements SET value = 0 WHERE outcome = 'ok'",
    "UPDATE measurements SET samples = '[NaN, Infinity]'",
    "UPDATE measurements SET samples = '{}'",
    "UPDATE measurements SET samples = '\"x\"'",
    "UPDATE measurements SET samples = '[\"x\"]'",
    "UPDATE measurements SET samples = '[0, 0]'",
    f"UPDATE measurements SET details = '{DEEP}'",
    "UPDATE measurements SET details = '[]'",
    "UPDATE measurements SET details = '{}'",
    'UPDATE measurements SET details = \'{"levels": 5, "compared": [], "gpu": 7}\'',
    "UPDATE measurements SET details = x'ff00'",
    "UPDATE measurements SET details = 'not JSON'",
    "UPDATE measurements SET details = '{\"a\": ' || printf('%.5000d', 9) || '}'",
    "UPDATE measurements SET outcome = 'splendid', value = NULL",
    "UPDATE measurements SET basis = 'guessed'",
    "UPDATE measurements SET message = char(27) || '[2J<script>[/bold]'",
    "UPDATE measurements SET message = x'ffff'",
    "UPDATE measurements SET seconds = 'x'",
    "UPDATE measurements SET seconds = 9e999",
    "UPDATE trials SET phase = 'later'",
    "UPDATE trials SET sequence = 'x' || id",
    "UPDATE trials SET candidate = '[]'",
    "UPDATE trials SET candidate = '{}'",
    "UPDATE trials SET candidate = '{\"BLOCK_SIZE_M\": [1]}'",
    "UPDATE trials SET candidate = '{\"BLOCK_SIZE_M\": null}'",
    'UPDATE trials SET candidate = \'{"\\u001b[2J": "<b>"}\'',
    "UPDATE trials SET created_at = 'yesterday'",
    "UPDATE studies SET identity = '{}'",
    "UPDATE studies SET identity = '[]'",
    'UPDATE studies SET identity = \'{"device": 5, "shape": 5}\'',
    "UPDATE studies SET identity = json_set(identity, '$.shape', json('{}'))",
    "UPDATE studies SET identity = json_set(identity, '$.shape.experts', 'x')",
    "UPDATE studies SET identity = json_set(identity, '$.shape.experts', -1)",
    "UPDATE studies SET identity = json_set(identity, '$.device', '../../../etc/passwd')",
    "UPDATE studies SET kind = 'game'",
    "UPDATE studies SET kind = char(27)",
    "UPDATE studies SET created_at = '9999-99-99'",
    "UPDATE studies SET created_at = NULL",
    "UPDATE searches SET setup = '{}'",
    "UPDATE searches SET setup = '[]'",
    'UPDATE searches SET setup = \'{"basis": "guessed"}\'',
    "UPDATE searches SET setup = json_set(setup, '$.basis', 7)",
    "UPDATE searches SET setup = json_set(setup, '$.vllm', json('[]'), '$.triton', json('{}'))",
    "UPDATE searches SET setup = json_set(setup, '$.space', 5, '$.recipe', 5)",
    "UPDATE searches SET setup = json_set(setup, '$.gpu', char(27) || '<img src=x>|`')",
    "UPDATE workloads SET spec = '{}'",
    "UPDATE workloads SET spec = '[]'",
    "UPDATE workloads SET spec = json_set(spec, '$.m', 'x', '$.concurrency', 'x')",
    "UPDATE workloads SET spec = json_set(spec, '$.m', -1, '$.concurrency', json('[0]'))",
    "UPDATE workloads SET spec = json_set(spec, '$.m', 1e30, '$.max_tokens', 1e30)",
    "UPDATE workloads SET label = char(27) || '<b>' || id",
    "UPDATE runs SET status = 'asleep'",
    "UPDATE runs SET status = 'running', pid = -1",
    "UPDATE runs SET command = char(27) || ']0;x' || char(7) || '<script>`|[/bold]'",
    "UPDATE runs SET started_at = 'x'",
    "UPDATE runs SET verdict = '5'",
    'UPDATE runs SET verdict = \'{"verdict": [], "warnings": 5}\'',
    f"UPDATE runs SET verdict = '{DEEP}'",
    "UPDATE environments SET details = '{}'",
    "UPDATE environments SET details = '[]'",
    'UPDATE environments SET details = \'{"gpus": 5, "packages": [], "cuda": []}\'',
    "DELETE FROM environments",
    "DELETE FROM workloads",
    "DELETE FROM measurements",
    "DELETE FROM runs",
    "DROP TABLE measurements",
    "DROP TABLE studies",
    "ALTER TABLE trials RENAME COLUMN candidate TO nominee",
    "CREATE VIEW spy AS SELECT * FROM studies",
    "CREATE TRIGGER spy AFTER UPDATE ON runs BEGIN DELETE FROM trials; END",
    "CREATE VIRTUAL TABLE spy USING fts5(a)",
    "UPDATE autotune_alembic_version SET version_num = '9999'",
    "UPDATE autotune_alembic_version SET version_num = '0001'",
    "UPDATE autotune_alembic_version SET version_num = x'ff'",
    "DELETE FROM autotune_alembic_version",
    "PRAGMA application_id = 5",
    "PRAGMA user_version = 5",
    "UPDATE measurements SET samples = NULL",
    "UPDATE measurements SET outcome = NULL, value = NULL",
)
"""Statements that make a good database one of nobody's; each is tried with a study of each kind."""

STUDIES = {"h200-gemma4": KEPT, "range": KEPT.parent / "h200-serving/range"}


def database(place: Place, study: str) -> Path:
    path = place.work / "a.db"
    path.write_bytes(gzip.decompress((STUDIES[study] / "trials.db.gz").read_bytes()))
    Store.open(f"sqlite:///{path}").close()
    return path


def changed(study: str, statement: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        with closing(sqlite3.connect(database(place, study))) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            connection.execute("PRAGMA writable_schema = ON")
            try:
                connection.execute(statement)
            except sqlite3.IntegrityError:  # NULL where none may be: the schema says otherwise
                connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '')")
            connection.commit()

    return make


def broken(how: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        path = database(place, "h200-gemma4")
        data = bytearray(path.read_bytes())
        if how == "half":
            data = data[: len(data) // 2]
        elif how == "a page of noise":
            data[8192:12288] = os.urandom(4096)
        elif how == "noise behind the header":
            data[100:4096] = os.urandom(3996)
        elif how == "page size 0":
            data[16:18] = b"\0\0"
        elif how == "a log of noise":
            (place.work / "a.db-wal").write_bytes(os.urandom(40_000))
        elif how == "a lock that is a link":
            (place.work / "a.db.lock").unlink(missing_ok=True)
            (place.work / "a.db.lock").symlink_to(place.precious)
        elif how == "a lock that is a pipe":
            (place.work / "a.db.lock").unlink(missing_ok=True)
            os.mkfifo(place.work / "a.db.lock")
        path.write_bytes(bytes(data))

    return make


def commands_of(study: str) -> dict[str, list[str]]:
    db = ["--db", "sqlite:///{t}/a.db"]
    found = {
        "show": ["show", study, *db],
        "report": ["report", study, *db],
        "studies": ["studies", *db],
        "csv": ["show", study, "--to", "{t}/x.csv", *db],
    }
    if study == "h200-gemma4":
        found["export"] = ["export", study, "--to", "folder", "--dest", "{t}/d", *db]
        found["sglang"] = ["export", study, "--to", "sglang", "--dest", "{t}/d", *db]
        found["compare"] = ["compare", "{t}/a.json", "{t}/b.json", "--study", study, *db]
    return found


def databases() -> Iterator[Input]:
    for study in STUDIES:
        commands = commands_of(study)
        for index, statement in enumerate(CHANGES):
            chosen = ["show", "report", *list(commands)[2 + index % (len(commands) - 2) :][:1]]
            for name in chosen:
                yield Input(statement[:70], commands[name], changed(study, statement))
    for how in ("half", "a page of noise", "noise behind the header", "page size 0",
                "a log of noise", "a lock that is a link", "a lock that is a pipe"):  # fmt: skip
        for name in ("studies", "show", "report"):
            yield Input(how, commands_of("h200-gemma4")[name], broken(how))
    for name, make in NO_FILES.items():
        for args in (["studies"], ["show", "x"], MOE):
            yield Input(name, [*args, "--db", "sqlite:///{t}/a.db"], at("a.db", make, GOOD_MODEL))
    for url in ("sqlite://", "sqlite:///:memory:", "postgresql://me:secret@127.0.0.1/x", "file:///x",
                "sqlite:///{t}/a.db?mode=memory", "sqlite:///file:x?vfs=unix-none&uri=true",
                "sqlite+pysqlcipher://:x@/a", "sqlite:////proc/self/mem", "x" * 5000):  # fmt: skip
        yield Input(f"URL {url[:40]}", ["studies", "--db", url], at("x", of("")))


# ------------------------------------------------------------------------------------------
# results that lie in the output folder, and files for export


def results() -> Iterator[Input]:
    places = {"h200-gemma4": "provenance.json", "range": "spec/best.json"}
    for study, name in places.items():
        args = ["report", study, "--db", "sqlite:///{t}/a.db", "--out", "{t}/out"]
        made = dict(NO_FILES) | {n: of(text) for n, text in TEXTS.items()}
        good = json.loads((STUDIES[study] / Path(name).name).read_text())
        for index, (what, value) in enumerate(VALUES.items()):
            key = list(good)[index % len(good)]
            text = json.dumps(good | {key: "@"}).replace('"@"', value)
            made[f"{key}: {what}"] = of(text)
        for what, make in made.items():

            def put(place: Place, study: str = study, name: str = name, make=make) -> None:  # type: ignore[no-untyped-def]
                database(place, study)
                path = place.work / "out" / study / name
                path.parent.mkdir(parents=True)
                make(path)

            yield Input(f"{name}: {what}", args, put)


def repository(place: Place, files: Mapping[str, str | bytes] | None = None) -> Path:
    database(place, "h200-gemma4")
    return checkout(place.work / "vllm", {**SMALL, **(files or {})})


CONFIGURATIONS = (
    "core.fsmonitor=touch canary", "core.hooksPath=../hooks", "filter.x.clean=touch canary",
    "filter.x.process=touch canary", "diff.external=touch canary", "gpg.program=touch canary",
    "commit.gpgSign=true", "core.pager=touch canary", "core.editor=touch canary",
    "core.sshCommand=touch canary", "credential.helper=!touch canary", "alias.log=!touch canary",
    "alias.cat-file=!touch canary", "core.worktree=/etc", "include.path=/dev/zero",
    "include.path=../evil", "extensions.partialClone=origin", "remote.origin.url=ext::touch canary",
    "core.gitProxy=touch canary", "diff.x.textconv=touch canary", "trailer.x.command=touch canary",
    "log.mailmap=true", "mailmap.file=/dev/zero", "core.alternateRefsCommand=touch canary",
    "core.fsmonitorHookVersion=2", "init.templateDir=../hooks", "merge.x.driver=touch canary",
)  # fmt: skip
EXPORT = ["export", "h200-gemma4", "--to", "vllm", "--repo", "{t}/vllm", "--dest", "{t}/d",
          "--signoff", PERSON, "--db", "sqlite:///{t}/a.db"]  # fmt: skip


def checkouts() -> Iterator[Input]:
    for setting in CONFIGURATIONS:

        def configure(place: Place, setting: str = setting) -> None:
            repo = repository(place, {".gitattributes": "* filter=x diff=x merge=x\n"})
            key, _, value = setting.partition("=")
            with (repo / ".git/config").open("a") as file:
                section, _, name = key.rpartition(".")
                one, _, sub = section.partition(".")
                head = f'[{one} "{sub}"]' if sub else f"[{one}]"
                file.write(f"{head}\n\t{name} = {json.dumps(value)}\n")
            hooks = place.work / "hooks"
            hooks.mkdir(exist_ok=True)
            for hook in ("pre-commit", "post-commit", "reference-transaction", "post-index-change"):
                for folder in (hooks, repo / ".git/hooks"):
                    folder.mkdir(exist_ok=True)
                    (folder / hook).write_text("#!/bin/sh\ntouch canary\n")
                    (folder / hook).chmod(0o755)

        yield Input(f"git {setting}", EXPORT, configure)
    yield from innards()
    yield from contents()
    yield from evidence()


def innards() -> Iterator[Input]:
    """Files of git's own that are none."""
    for name in ("objects/info/alternates", "info/attributes", "info/grafts", "index", "HEAD",
                 "packed-refs", "config", "info/exclude", "shallow"):  # fmt: skip
        for kind in ("/dev/zero", "a pipe", "a folder"):

            def replace(place: Place, name: str = name, kind: str = kind) -> None:
                path = repository(place) / ".git" / name
                path.unlink(missing_ok=True)
                path.parent.mkdir(exist_ok=True)
                NO_FILES[kind](path)

            yield Input(f"git's {name}: {kind}", EXPORT, replace)


def contents() -> Iterator[Input]:
    hostile: dict[str, dict[str, str | bytes]] = {
        "requirements of 5,000 digits": {"requirements/cuda.txt": "triton==" + "9" * 5000},
        "requirements of one line": {"requirements/cuda.txt": "triton ==" * 200_000},
        "a template of NUL": {".github/PULL_REQUEST_TEMPLATE.md": b"\0\xff" * 1000},
        "a template of headings": {".github/PULL_REQUEST_TEMPLATE.md": "## x\n" * 50_000},
        "a kernel of 200 MiB": {KERNEL_FILE: bytes(200 << 20)},
        "a file that is none": {NAME: b"\xff" * 100},
        "a file of NaN": {NAME: '{"1": NaN}'},
        "a deep file": {NAME: "[" * 100_000},
        "a neighbour of markup": {
            str(Path(NAME).with_name("E=128,N=704,device_name=`x`|<b>,dtype=x.json")): "{}"
        },
        "a neighbour of ESC": {
            str(Path(NAME).with_name("E=128,N=704,device_name=\x1b[2J.json")): "{}"
        },
        "many neighbours": {
            str(Path(NAME).with_name(f"E=128,N=704,device_name=x{i}.json")): "{}"
            for i in range(300)
        },
    }  # fmt: skip
    for name, files in hostile.items():
        yield Input(name, EXPORT, functools.partial(repository, files=files))
    for name, message in {
        "markup": "<script>alert(1)</script> | `x` --> [x](y)", "ESC": "\x1b[2J\x1b]0;x\x07",
        "a megabyte": "m" * (1 << 20), "right to left": "\u202eabc",
    }.items():  # fmt: skip

        def commit(place: Place, message: str = message) -> None:
            repo = repository(place)
            file = place.work / "message"
            file.write_text(message)
            git(repo, "commit", "-q", "--amend", "-F", str(file))
            git(repo, "tag", "-f", "v9/<b>`x`")

        yield Input(f"a subject of {name}", EXPORT, commit)


def evidence() -> Iterator[Input]:
    for flag in ("--compared", "--serve-log"):
        made = dict(NO_FILES) | {n: of(text) for n, text in TEXTS.items()}
        for name, make in made.items():

            def put(place: Place, make=make) -> None:  # type: ignore[no-untyped-def]
                repository(place, {NAME: GOOD})
                make(place.work / "x")

            yield Input(f"{flag}: {name}", [*EXPORT, flag, "{t}/x"], put)
    line = f"Using configuration from /x/{Path(NAME).name} for MoE layer."
    for name, text in {
        "markup": line + " <b>`|", "ESC": "\x1b[2J" + line, "2 MiB": "x" * (2 << 20) + line,
        "no blanks": "Using configuration from " * 50_000,
    }.items():  # fmt: skip

        def log(place: Place, text: str = text) -> None:
            repository(place)
            (place.work / "x").write_text(text)

        yield Input(f"--serve-log: {name}", [*EXPORT, "--serve-log", "{t}/x"], log)


# ------------------------------------------------------------------------------------------
# bundles


def bundled(change: Callable[[dict[str, Any]], str]) -> Callable[[Place], None]:
    """A bundle of the kept study as JSON, changed as text, and packed."""

    def make(place: Place) -> None:
        database(place, "range")
        with Store.open(f"sqlite:///{place.work}/a.db", create=False) as store:
            whole = make_bundle(store, "range", Anonymous())
        text = change(json.loads(gzip.decompress(packed(whole))))
        (place.work / "b.json.gz").write_bytes(gzip.compress(text.encode()))

    return make


def replaced(path: tuple[str | int, ...], value: str) -> Callable[[dict[str, Any]], str]:
    def change(whole: dict[str, Any]) -> str:
        inner: Any = whole
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = "@"
        return json.dumps(whole).replace('"@"', value)

    return change


PATHS: tuple[tuple[str | int, ...], ...] = (
    ("format",), ("version",), ("autotune",), ("study",), ("study", "name"), ("study", "kind"),
    ("study", "identity"), ("study", "created_at"), ("environments",), ("environments", 0),
    ("searches",), ("searches", 0, "setup"), ("searches", 0, "setup", "basis"),
    ("searches", 0, "setup", "recipe"), ("searches", 0, "verdict"), ("searches", 0, "runs"),
    ("searches", 0, "runs", 0, "environment"), ("searches", 0, "runs", 0, "started_at"),
    ("searches", 0, "workloads", 0, "key"), ("searches", 0, "workloads", 0, "spec"),
    ("searches", 0, "trials"), ("searches", 0, "trials", 0, "run"),
    ("searches", 0, "trials", 0, "candidate"), ("searches", 0, "trials", 0, "value"),
    ("searches", 0, "trials", 0, "samples"), ("searches", 0, "trials", 0, "details"),
    ("searches", 0, "trials", 0, "details", "levels"), ("searches", 0, "trials", 0, "message"),
)  # fmt: skip


def bundles() -> Iterator[Input]:
    args = ["merge", "{t}/b.json.gz", "--db", "sqlite:///{t}/new.db", "--study", "s"]
    small = [(name, value) for name, value in VALUES.items()]
    for index, path in enumerate(PATHS):
        for step in range(4):
            name, value = small[(index * 4 + step * 9) % len(small)]
            where = ".".join(map(str, path))
            yield Input(f"{where}: {name}", args, bundled(replaced(path, value)))
    for name, make in NO_FILES.items():
        yield Input(name, args, at("b.json.gz", make))
    for name, data in TEXTS.items():
        yield Input(name, args, at("b.json.gz", of(data)))
        yield Input(f"packed: {name}", args, at("b.json.gz", of(gzip.compress(data))))
    yield Input("a gzip bomb", args, at("b.json.gz", of(gzip.compress(bytes(1 << 20)) * (1 << 10))))
    yield Input("a gzip of itself, often", args,
                at("b.json.gz", of(gzip.compress(gzip.compress(bytes(1 << 28))))))  # fmt: skip


SOURCES: dict[str, Callable[[], Iterator[Input]]] = {
    "databases": databases,
    "results": results,
    "checkouts": checkouts,
    "bundles": bundles,
}
