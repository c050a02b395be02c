"""More inputs of ``benchmarks/hostile_round.py``: YAML, prompts, flags, logs, databases, git."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from autotune.store.store import Store
from autotune.util.resources import data_root
from benchmarks.hostile_sources import FILE, FITS, GOOD, MODEL, ROW, Input, Place, at
from tests.kernels.kept_study import KEPT, NAME, PERSON, SMALL, checkout, git
from tests.support.hostile_files import NO_FILES, TEXTS, VALUES, YAMLS, of

GOOD_MODEL = ("m/config.json", json.dumps(MODEL))
MOE = ["moe", "--device", "gb10", "--model", "{t}/m", "--batch-sizes", "1", "--dry-run"]
SPEC = ["spec", "--target", "{t}/m", "--drafter", "ngram", "--gamma", "0,2", *FITS]

# ------------------------------------------------------------------------------------------
# YAML: search spaces and devices

SPACE = (data_root() / "search_spaces/moe/stock.yaml").read_text()
DEVICE = (data_root() / "search_spaces/devices/gb10.yaml").read_text()
SERVING = (data_root() / "search_spaces/spec/gemma-4-26b-a4b-gb10.yaml").read_text()


def yaml_files() -> Iterator[Input]:
    commands = {
        "space": ([*MOE, "--space", "{t}/s.yaml"], SPACE),
        "device": (["moe", *MOE[3:], "--device", "{t}/s.yaml"], DEVICE),
        "spec": ([*SPEC[:5], *FITS, "--space", "{t}/s.yaml"], SERVING),
    }
    kinds = list(commands.items())
    for index, (name, text) in enumerate(YAMLS.items()):
        kind, (args, whole) = kinds[index % 3]
        yield Input(f"{kind}: {name}", args, at("s.yaml", of(text), GOOD_MODEL))
        kind, (args, whole) = kinds[(index + 1) % 3]
        both = whole + "\nextra:\n" + "".join(f"  {line}\n" for line in text[:2000].split("\n"))
        yield Input(f"{kind}, inside: {name}", args, at("s.yaml", of(both), GOOD_MODEL))
    for kind, (args, whole) in commands.items():
        for name, make in list(NO_FILES.items())[::2]:
            yield Input(f"{kind}: {name}", args, at("s.yaml", make, GOOD_MODEL))
        lines = [n for n, line in enumerate(whole.split("\n")) if ":" in line]
        for index, (name, value) in enumerate(VALUES.items()):
            changed = whole.split("\n")
            place = lines[(index * 3) % len(lines)]
            if len(value) < 10_000:
                changed[place] = changed[place].partition(":")[0] + ": " + value
            yield Input(f"{kind}, line {place}: {name}", args,
                        at("s.yaml", of("\n".join(changed)), GOOD_MODEL))  # fmt: skip


# ------------------------------------------------------------------------------------------
# routing, prompts, folders of MoE files, flags


def small_files() -> Iterator[Input]:
    routing = [*MOE, "--predict", "--routing", "{t}/r.json"]
    prompts = [*SPEC, "--prompts", "{t}/p.jsonl"]
    folder = [*SPEC, "--moe-config", "{t}/tuned"]
    for name, value in VALUES.items():
        yield Input(f"routing: {name}", routing, at("r.json", of(f"[1, {value}]"), GOOD_MODEL))
        line = f'{{"prompt": {value}}}\n'
        yield Input(f"prompt: {name}", prompts, at("p.jsonl", of(line), GOOD_MODEL))
        line = f'{{"messages": [{{"role": {value}, "content": {value}}}]}}\n'
        yield Input(f"messages: {name}", prompts, at("p.jsonl", of(line), GOOD_MODEL))
    for name, make in NO_FILES.items():
        yield Input(f"routing: {name}", routing, at("r.json", make, GOOD_MODEL))
        yield Input(f"prompts: {name}", prompts, at("p.jsonl", make, GOOD_MODEL))
        yield Input(f"MoE file: {name}", folder, at(f"tuned/{FILE}", make, GOOD_MODEL))
    for name, data in TEXTS.items():
        yield Input(f"MoE file: {name}", folder, at(f"tuned/{FILE}", of(data), GOOD_MODEL))
    many = "".join(f'{{"prompt": "{i}"}}\n' for i in range(100_000))
    yield Input("100,000 prompts", prompts, at("p.jsonl", of(many), GOOD_MODEL))
    deep = "[" * 60 + "]" * 60
    wide = "".join(f'{{"prompt": "a", "x{i}": {deep}}}\n' for i in range(2_000))
    yield Input("prompts with more than they need", prompts, at("p.jsonl", of(wide), GOOD_MODEL))


ODD = ("", " ", "-", "--", "\x1b[2J", "a\nb", "9" * 5000, "1e999", "NaN", "-1", "٣", "²", "1" * 300,
       "\u202e1", "[/bold]", "${HOME}", "$(touch canary)", "`touch canary`", "; touch canary",
       "../../x", "x" * 100_000, "a," * 50_000, "0-" + "9" * 400, "1=2=3", "=", ",", "'", '"')  # fmt: skip


def flags() -> Iterator[Input]:
    spec = ["--gamma", "--kv-cache-dtype", "--gpu-memory-utilization", "--set", "--concurrency", "--slo", "--budget", "--server-arg", "--env", "--moe-config", "--synthetic-acceptance", "--vllm", "--image", "--mount", "--gpus", "--docker-arg", "--start-timeout", "--study", "--quality", "--header", "--url", "--min-gain", "--prompts", "--max-tokens", "--repeats", "--context", "--launcher", "--objective"]  # fmt: skip
    moe = ["--batch-sizes", "--gamma", "--concurrency", "--space", "--budget", "--min-gain", "--routing", "--study", "--tp", "--ep", "--experts", "--dtype", "--scheme", "--layer", "--seed", "--workers", "--memory-limit"]  # fmt: skip
    put = at(*("m/config.json", of(GOOD_MODEL[1])))
    for index, flag in enumerate(spec):
        for step in (0, 1, 2):
            odd = ODD[(index * 3 + step * 7) % len(ODD)]
            args = [*SPEC, f"{flag}={odd}"]
            yield Input(f"spec {flag} {odd[:20]!a}", args, put)
    for index, flag in enumerate(moe):
        for step in (0, 1, 2):
            odd = ODD[(index * 5 + step * 11) % len(ODD)]
            yield Input(f"moe {flag} {odd[:20]!a}", [*MOE, f"{flag}={odd}"], put)
    for index, args in enumerate(
        (
            ["show"],
            ["report"],
            ["export", "--to", "folder"],
            ["dashboard"],
            ["files", "--device"],
            ["devices", "--json"],
            ["studies", "--db"],
            ["explain"],
            ["verify"],
            ["compare", "x"],
            ["doctor", "--device"],
            ["resume"],
            [],
            ["moe", "--device"],
        )  # fmt: skip
    ):
        for step in (0, 1, 2, 3):
            odd = ODD[(index * 4 + step * 5) % len(ODD)]
            yield Input(f"{' '.join(args)} {odd[:20]!a}", [*args, odd], put)


# ------------------------------------------------------------------------------------------
# logs

LOGS: Mapping[str, bytes] = {
    "a line of 3 MB after device-side assert": b"RuntimeError: CUDA error: device-side assert "
    + b"x" * (3 << 20),
    "a million short lines": b"INFO 01-01 00:00:00 [x.py:1] a\n" * 300_000,
    "a million empty lines": b"\n" * (4 << 20),
    "carriage returns": b"\r" * (4 << 20),
    "colours": b"\x1b[31m" * 500_000,
    "an escape without end": b"\x1b]0;" + b"x" * (2 << 20),
    "brackets": b"(" * (2 << 20),
    "braces": b'{"' * (1 << 20),
    "json in json": (b'{"log": "' + b'{\\"log\\": ' * 1000 + b"\n") * 300,
    "a traceback without end": b"Traceback (most recent call last):\n" + b'  File "x"\n' * 300_000,
    "5,000 digits": b"GPU KV cache size: " + b"9" * 5000 + b" tokens\n",
    "commas": b"GPU KV cache size: " + b"9," * 200_000 + b" tokens\n",
    "infinite GiB": b"Available KV cache memory: 1e999 GiB\nAvailable KV cache memory: inf GiB\n",
    "NaN GiB": b"Available KV cache memory: nan GiB\n",
    "markup": b"ERROR 01-01 00:00:00 [x.py:1] [/bold][red]ValueError: [/nothing]\n",
    "HTML": b"ValueError: <script>alert(1)</script>-->\n",
    "a command to copy": b"ValueError: run $(touch canary) `touch canary`; touch canary\n",
    "right to left": "ValueError: \u202e\u2066abc\n".encode(),
    "C1": b"ValueError: \xc2\x9b31m\xc2\x9d\n",
    "backspaces": b"ValueError: a\b\b\b\bsafe\n",
    "NUL": bytes(1 << 20),
    "random": bytes(range(256)) * 4000,
    "UTF-16": "ERROR ValueError: x\n".encode("utf-16") * 10_000,
    "UTF-16 that breaks off": b"\xff\xfe\x00\xd8",
    "drafted 10^400": b"SpecDecoding metrics: Mean acceptance length: 1e400, Accepted: "
    + b"9" * 400 + b" tokens, Drafted: 0 tokens\n",
    "drafted 0 of 0": b"SpecDecoding metrics: Mean acceptance length: 0.0, Accepted: 0 tokens, "
    b"Drafted: 0 tokens, Per-position acceptance rate: , Avg Draft acceptance rate: nan%\n",
    "configuration folders": b"Using configuration from /" + b"a/" * 100_000 + b"E=1.json\n",
}  # fmt: skip


def logs() -> Iterator[Input]:
    for name, data in LOGS.items():
        for extra in ([], ["--json"]):
            yield Input(name, ["explain", "{t}/x.log", *extra], at("x.log", of(data)))
        yield Input(f"{name}, piped", ["explain", "-"], at("y", of("")), stdin=data)
    for name, make in NO_FILES.items():
        yield Input(name, ["explain", "{t}/x.log"], at("x.log", make))
    for name, data in TEXTS.items():
        yield Input(name, ["explain", "{t}/x.log"], at("x.log", of(data)))


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
            (place.work / "a.db.lock").symlink_to(place.precious)
        elif how == "a lock that is a pipe":
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
    hostile = {
        "requirements of 5,000 digits": {"requirements/cuda.txt": "triton==" + "9" * 5000},
        "requirements of one line": {"requirements/cuda.txt": "triton ==" * 200_000},
        "a template of NUL": {".github/PULL_REQUEST_TEMPLATE.md": b"\0\xff" * 1000},
        "a template of headings": {".github/PULL_REQUEST_TEMPLATE.md": "## x\n" * 50_000},
        "a kernel of 200 MiB": {"vllm/model_executor/layers/fused_moe/fused_moe.py": bytes(200 << 20)},
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
        yield Input(name, EXPORT, lambda place, files=files: repository(place, files))
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
    for flag in ("--compared", "--serve-log"):
        made = dict(NO_FILES) | {n: of(text) for n, text in TEXTS.items()}
        for name, make in made.items():

            def put(place: Place, make=make) -> None:  # type: ignore[no-untyped-def]
                repository(place, {NAME: GOOD})
                make(place.work / "x")

            yield Input(f"{flag}: {name}", [*EXPORT, flag, "{t}/x"], put)
    line = f"Using configuration from /x/{Path(NAME).name} for MoE layer."
    for name, text in {"markup": line + " <b>`|", "ESC": "\x1b[2J" + line, "2 MiB": "x" * (2 << 20)
                       + line, "no blanks": "Using configuration from " * 50_000}.items():  # fmt: skip

        def log(place: Place, text: str = text) -> None:
            repository(place)
            (place.work / "x").write_text(text)

        yield Input(f"--serve-log: {name}", [*EXPORT, "--serve-log", "{t}/x"], log)


# ------------------------------------------------------------------------------------------
# what the machine's programs say


def machine() -> Iterator[Input]:
    saids = {
        "nothing": "", "one field": "x", "ESC": "\x1b[2J, b, c, d, e", "quotes": '"' * 1000,
        "numbers of 5,000 digits": ", ".join(["9" * 5000] * 5), "NaN": "nan, nan, nan, nan, nan",
        "markup": "[/bold], <b>, `x`, |, -->", "many": "a, b, c, d, e\n" * 20_000,
        "not UTF-8": "\udcff\udcfe, b, c, d, e", "N/A": "[N/A], [N/A], [N/A], [N/A], [N/A]",
        "a GPU of letters": "NVIDIA GB10, GPU-x, 580, lots, 12.x",
        "below 0": "NVIDIA GB10, GPU-x, 580, -5, -1.-2", "an error": "No devices were found",
    }  # fmt: skip
    for name, text in saids.items():
        for args in (["devices"], ["devices", "--json"], ["doctor"],
                     ["moe", *MOE[3:], "--device", "auto"]):  # fmt: skip

            def put(place: Place, text: str = text) -> None:
                tool = place.work / "bin/nvidia-smi"
                tool.parent.mkdir()
                (place.work / "said").write_bytes(text.encode("utf-8", "surrogateescape"))
                tool.write_text(f"#!/bin/sh\ncat {place.work}/said\n")
                tool.chmod(0o755)
                at("m/config.json", of(GOOD_MODEL[1]))(place)
                shutil.copy("/bin/cat", place.work / "bin/cat")

            yield Input(f"nvidia-smi: {name}", args, put, env={"PATH": "{t}/bin:/usr/bin:/bin"})


SOURCES: dict[str, Callable[[], Iterator[Input]]] = {
    "YAML": yaml_files,
    "small files": small_files,
    "flags": flags,
    "logs": logs,
    "databases": databases,
    "results": results,
    "checkouts": checkouts,
    "machine": machine,
}
_ = ROW
