"""Strangers at the socket of the service: raw bytes, slow, endless, cut at each byte, many."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from autotune.web import connection, gate
from autotune.web.serve import config_of
from tests.web.conftest import TOKEN, Site

GOOD = (
    b"GET /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "
    + TOKEN.encode()
    + b"\r\nConnection: close\r\n\r\n"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """One service on a socket, whatever is done to it."""
    site = Site(tmp_path_factory.mktemp("site"))
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        server = uvicorn.Server(config_of(site.app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        yield listening.getsockname()
        server.should_exit = True
        thread.join(20)
    site.close(0)


@contextmanager
def asked(address: tuple[str, int], data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(address, 30) as peer:
        with contextlib.suppress(OSError):
            peer.sendall(data)
        yield peer


def answer(address: tuple[str, int], data: bytes) -> bytes:
    """All that the service says; empty where it just closes."""
    said = b""
    with asked(address, data) as peer, contextlib.suppress(OSError):
        while part := peer.recv(65536):
            said += part
    return said


def is_well(address: tuple[str, int]) -> bool:
    return answer(address, GOOD).startswith(b"HTTP/1.1 200 ")


def head(*lines: bytes, path: bytes = b"/api/v1/jobs", method: bytes = b"GET") -> bytes:
    token = b"Authorization: Bearer " + TOKEN.encode()
    given = [method + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1", token, b"Connection: close"]
    return b"\r\n".join([*given, *lines]) + b"\r\n\r\n"


JSON = b"Content-Type: application/json"
HOSTILE: dict[str, bytes] = {
    "nothing": b"\r\n\r\n",
    "zeros": bytes(1000),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "no host": b"GET /api/v1/jobs HTTP/1.0\r\n\r\n",
    "two hosts": head(b"Host: evil.example"),
    "an absolute target": head(path=b"http://evil.example/api/v1/jobs"),
    "a target without slash": head(path=b"api"),
    "an asterisk": head(path=b"*", method=b"OPTIONS"),
    "CONNECT": head(path=b"evil.example:443", method=b"CONNECT"),
    "TRACE": head(method=b"TRACE"),
    "a method of 10,000 letters": head(method=b"G" * 10_000),
    "an unknown method": head(method=b"BREW"),
    "NUL in the path": head(path=b"/api/v1/jobs/%00"),
    "half a percent": head(path=b"/api/v1/jobs/%"),
    "a lone surrogate": head(path=b"/api/v1/studies/%ed%a0%80"),
    "not UTF-8": head(path=b"/api/v1/studies/%ff%fe"),
    "ESC": head(path=b"/api/v1/studies/%1b%5b2J"),
    "raw bytes in the path": head(path=b"/api/v1/studies/\xff\xfe"),
    "dots": head(path=b"/static/..%2f..%2f..%2fetc%2fpasswd"),
    "dots, double": head(path=b"/static/%252e%252e/%252e%252e/etc/passwd"),
    "a backslash": head(path=b"/static/..\\..\\etc\\passwd"),
    "two slashes": head(path=b"//evil.example/api/v1/jobs"),
    "a path of 60,000 letters": head(path=b"/" + b"a" * 60_000),
    "a path of 10 MB": head(path=b"/" + b"a" * (10 << 20)),
    "a header of 10 MB": head(b"X: " + b"y" * (10 << 20)),
    "a hundred thousand headers": head(*[b"X: y"] * 100_000),
    "a folded header": head(b"X: a\r\n b"),
    "a header without colon": head(b"X"),
    "a header with a blank": head(b"X : y"),
    "a header of NUL": head(b"X: \0"),
    "a header of ESC": head(b"X: \x1b[2J"),
    "a job of 400 digits": head(path=b"/api/v1/jobs/" + b"9" * 400),
    "a job of 5,000 digits": head(path=b"/api/v1/jobs/" + b"9" * 5000),
    "a job below 0": head(path=b"/api/v1/jobs/-1"),
    "a job of letters": head(path="/api/v1/jobs/\u0661".encode()),
    "a limit of 5,000 digits": head(path=b"/api/v1/jobs?limit=" + b"9" * 5000),
    "a cursor of letters": head(path=b"/api/v1/jobs?cursor=%D9%A1"),
    "a state of markup": head(path=b"/api/v1/jobs?state=<script>"),
    "a kind of NUL": head(path=b"/api/v1/jobs?kind=%00&kind=%ff"),
    "an offset of 2^60": head(path=b"/api/v1/jobs/1/log?offset=1152921504606846976"),
    "a device that is a path": head(path=b"/api/v1/doctor?device=/dev/zero"),
    "a device that is a file": head(path=b"/api/v1/doctor?device=..%2fx.yaml"),
    "a page of job 10^400": head(path=b"/jobs/1" + b"0" * 400),
    "a page of job 2^63": head(path=b"/jobs/9223372036854775808"),
    "a page of a state of markup": head(path=b"/?state=<script>&cursor=x"),
    "a page of no kind": head(path=b"/new/%00%1b"),
    "a form filled with markup": head(path=b"/new/moe?model=%22%3E%3Cscript%3E&x=" + b"y" * 9000),
    "a page of no study": head(path=b"/studies/%ff%00/report"),
    "a report of a path": head(path=b"/studies/..%2f..%2fetc/report"),
    "a login of a megabyte": head(
        b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 1000000",
        path=b"/login", method=b"POST",
    )
    + b"token=" + b"a" * 999_994,
    "a login of many fields": head(
        b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 4000",
        path=b"/login", method=b"POST",
    )
    + b"a=b&" * 1000,
    "a login of bytes": head(
        b"Content-Type: application/x-www-form-urlencoded", b"Content-Length: 12",
        path=b"/login", method=b"POST",
    )
    + b"token=%ff\xff\0",
    "a length below 0": head(JSON, b"Content-Length: -1", method=b"POST"),
    "a length of 400 digits": head(JSON, b"Content-Length: " + b"9" * 400, method=b"POST"),
    "two lengths": head(JSON, b"Content-Length: 2", b"Content-Length: 3", method=b"POST") + b"{}",
    "length and chunks": head(
        JSON, b"Content-Length: 2", b"Transfer-Encoding: chunked", method=b"POST"
    )
    + b"0\r\n\r\n",
    "chunks of another coding": head(JSON, b"Transfer-Encoding: gzip, chunked", method=b"POST"),
    "a bad chunk": head(JSON, b"Transfer-Encoding: chunked", method=b"POST") + b"zz\r\n",
    "a chunk of 2^70": head(JSON, b"Transfer-Encoding: chunked", method=b"POST")
    + b"400000000000000000\r\n",
    "two megabytes in chunks": head(JSON, b"Transfer-Encoding: chunked", method=b"POST")
    + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 32,
    "a web socket": head(b"Upgrade: websocket", b"Connection: Upgrade"),
    "h2c": head(b"Upgrade: h2c", b"HTTP2-Settings: x"),
    "Expect": head(JSON, b"Expect: 100-continue", b"Content-Length: 2", method=b"POST") + b"{}",
    "requests one after the other": GOOD.replace(b"close", b"keep-alive") * 50 + GOOD,
    "a smuggled request": head(JSON, b"Content-Length: 0", method=b"POST") + GOOD,
    "a body of NaN": head(JSON, b"Content-Length: 3", method=b"POST") + b"NaN",
    "a body of half a surrogate": head(JSON, b"Content-Length: 21", method=b"POST")
    + b'{"kind": "\\ud800moe"}',
    "a deep body": head(JSON, b"Content-Length: 200000", method=b"POST") + b"[" * 200_000,
    "a range": head(b"Range: bytes=0-,0-,0-" + b",0-" * 5000),
    "a cookie of 50 KiB": head(b"Cookie: " + b"a=b; " * 10_000),
    "a token of 50 KiB": head(b"X-Forwarded-Host: 127.0.0.1", b"X-Original-URL: /login"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_the_service_goes_on(
    name: str, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "BODY_S", 0.5)
    began = time.monotonic()
    said = answer(address, HOSTILE[name])
    assert time.monotonic() - began < 60.0
    assert b" 500 " not in said.partition(b"\r\n")[0], said
    assert b"Traceback" not in said
    assert b"root:" not in said
    assert is_well(address)


def test_a_request_that_is_reset_at_each_byte_hurts_nobody(address: tuple[str, int]) -> None:
    whole = head(JSON, b"Content-Length: 15", method=b"POST") + b'{"kind": "moe"}'
    for count in range(len(whole)):
        with asked(address, whole[:count]) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert is_well(address)


def test_who_says_nothing_keeps_nobody_out(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More silent and slow connections than may be open, and no time limit of uvicorn's own."""
    monkeypatch.setattr(connection, "HEAD_S", 2.0)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    silent = [socket.create_connection(address, 30) for _ in range(600)]
    try:
        for peer in silent[::2]:
            with contextlib.suppress(OSError):
                peer.sendall(b"GET / HTTP/1.1\r\nX: y")
        end = time.monotonic() + 120
        while not is_well(address) and time.monotonic() < end:
            time.sleep(0.2)
        assert is_well(address)
        silent[1].settimeout(60)
        with contextlib.suppress(ConnectionError):
            assert silent[1].recv(100) == b""
    finally:
        for peer in silent:
            peer.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
