"""Hostile things that lie in a folder: bytes, JSON, YAML, and what is no file at all.

``tests/test_hostile_files.py`` gives some to the readers, ``benchmarks/hostile_round.py`` all of
them to the commands.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

Make = Callable[[Path], None]
"""Puts something at a path."""


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def unix_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has 108 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


def sparse(size: int) -> Make:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def of(data: bytes | str) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)

    return make


NO_FILES: Mapping[str, Make] = {
    "a pipe": pipe,
    "a folder": folder,
    "a socket": unix_socket,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": link_to("absent"),
    "/dev/zero": link_to("/dev/zero"),
    "/dev/null": link_to("/dev/null"),
    "/dev/random": link_to("/dev/random"),
    "/dev/tty": link_to("/dev/tty"),
    "/dev/stdin": link_to("/proc/self/fd/0"),
    "/proc/self/mem": link_to("/proc/self/mem"),
    "/proc/kmsg": link_to("/proc/kmsg"),
    "/proc/self/pagemap": link_to("/proc/self/pagemap"),
    "/proc/self/environ": link_to("/proc/self/environ"),
    "a terabyte of nothing": sparse(1 << 40),
    "200 MiB of nothing": sparse(200 << 20),
}

TEXTS: Mapping[str, bytes] = {
    "nothing": b"",
    "a blank": b" \n",
    "NUL": b"\0" * 100,
    "a byte order mark alone": b"\xef\xbb\xbf",
    "UTF-16": '{"1": {}}'.encode("utf-16"),
    "UTF-32": '{"1": {}}'.encode("utf-32"),
    "Latin-1": '{"ä": 1}'.encode("latin-1"),
    "half of a surrogate pair, as bytes": b'{"\xed\xa0\x80": 1}',
    "gzip": b"\x1f\x8b\x08\x00" + bytes(50),
    "an ELF program": b"\x7fELF" + bytes(50),
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "SQLite": b"SQLite format 3\0" + bytes(500),
    "a shell script": b"#!/bin/sh\ntouch canary\n",
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "ESC": b"\x1b[2J\x1b]0;title\x07",
    "half": b'{"1": {"BLOCK_SIZE_M": 16, "BLO',
    "two values": b"{}{}",
    "a comma too many": b'{"1": 2,}',
    "one megabyte of one line": b"x" * (1 << 20),
}

VALUES: Mapping[str, str] = {
    "null": "null",
    "true": "true",
    "a text": '"8"',
    "a number as text of ESC": '"\\u001b[2J\\u0007"',
    "half of a surrogate pair": '"\\ud800"',
    "a fraction": "8.5",
    "a whole fraction": "8.0",
    "zero": "0",
    "minus one": "-1",
    "minus zero": "-0.0",
    "2^31": "2147483648",
    "2^53": "9007199254740992",
    "2^63": "9223372036854775808",
    "30 digits": "9" * 30,
    "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000,
    "1e30": "1e30",
    "1e308": "1e308",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "minus Infinity": "-Infinity",
    "an empty list": "[]",
    "a list": "[8]",
    "an empty object": "{}",
    "an object": '{"a": 8}',
    "deep": "[" * 100 + "]" * 100,
    "very deep": "[" * 100_000 + "]" * 100_000,
    "an empty text": '""',
    "a newline": '"a\\nb"',
    "markup": '"[bold]<b>|`x`</b>[/bold] [/nothing] -->"',
    "right to left": '"\\u202e\\u2066abc"',
    "a text of a megabyte": '"' + "m" * (1 << 20) + '"',
    "a path": '"../../../../etc/passwd"',
    "a template": '"{{ 7*7 }}{% for x in y %}$(id)`id`"',
}
"""What may stand in JSON where something else is expected."""

YAMLS: Mapping[str, str] = {
    "merge keys": "a0: &a0 {k: 1}\n"
    + "".join(
        f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}], x{i}: 1}}\n" for i in range(1, 40)
    ),
    "a billion laughs": "a0: &a0 [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "itself": "a: &a [*a]",
    "itself as a key": "&a {*a : 1}",
    "merges itself": "a: &a\n  <<: *a\n",
    "merges a number": "<<: 5\n",
    "a list as a key": "? [1, 2]\n: 3\n",
    "an object as a key": "? {a: 1}\n: 3\n",
    "NaN as a key": ".nan: 1\n",
    "5,000 digits": "a: " + "9" * 5000,
    "sexagesimal": "a: " + "1:" * 5000 + "1",
    "underscores": "a: 1" + "_0" * 5000,
    "binary": "a: 0b" + "1" * 5000,
    "a hundred thousand keys": "".join(f"k{i}: 1\n" for i in range(30_000)),
    "a long list": "a: [" + "1," * 100_000 + "]",
    "anchors": "a: [" + "".join(f"&a{i} 1," for i in range(20_000)) + "]",
    "tags": "a: [" + "! 1," * 40_000 + "]",
    "timestamps": "a: [" + "2001-12-14t21:59:43.10-05:00," * 8_000 + "]",
    "a date that is none": "a: 2024-13-45\n",
    "a year 0": "a: 0000-00-00\n",
    "deep flow": "a: " + "[" * 5_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(700)),
    "deep dashes": "- " * 2_000,
    "a python object": "a: !!python/object/apply:os.system ['touch canary']\n",
    "a python name": "a: !!python/name:os.system\n",
    "an unknown tag": "a: !secret x\n",
    "a tag of bytes": "a: !!binary x\n",
    "binary of a megabyte": "a: !!binary " + "A" * 200_000,
    "a set": "a: !!set {x, y}\n",
    "ordered": "a: !!omap [x: 1]\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "directives": "%YAML 9.9\n---\na: 1\n",
    "tabs": "a:\n\t- b\n",
    "a control character": "a: \x07\n",
    "ESC in a key": '"\\e[2J": 1\n',
    "half of a surrogate pair": 'a: "\\ud800"\n',
    "a key twice": "name: a\nname: b\n",
    "infinity": "a: .inf\n",
    "NaN": "a: .nan\n",
    "a text": "just words\n",
    "a list at the top": "- a\n",
    "an unknown alias": "a: *b\n",
    "NEL": "a: b\x85c: d\n",
    "one line of 200 KiB": "a: " + "x" * 200_000,
    "one line of 2 MiB": "a: " + "x" * (2 << 20),
    "comments": "#\n" * 100_000,
}
