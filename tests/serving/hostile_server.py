"""A server of misbehaviours: one switch for each, in raw bytes, on a socket of its own.

A misbehaviour answers some paths wrongly and the others as a small vLLM does.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

METRICS = """\
process_start_time_seconds 1000.0
vllm:num_preemptions_total{engine="0"} 0.0
vllm:prompt_tokens_total{engine="0"} 5.0
vllm:generation_tokens_total{engine="0"} 5.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:num_requests_running{engine="0"} 0.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:cache_config_info{engine="0",kv_cache_size_tokens="4096"} 1.0
"""
MODELS: dict[str, Any] = {"data": [{"id": "served", "max_model_len": 512}]}
USAGE: dict[str, Any] = {"prompt_tokens": 5, "completion_tokens": 4}


@dataclass
class Seen:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def response(body: bytes, status: str = "200 OK", *headers: str, length: bool = True) -> bytes:
    """An HTTP answer; one that ends the connection."""
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close"]
    lines += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def event(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode("utf-8", "surrogateescape")


def token(text: Any = "a", **more: Any) -> bytes:
    return event({"choices": [{"delta": {"content": text}, **more}]})


def stream(*events: bytes) -> bytes:
    return response(b"".join(events), "200 OK", "Content-Type: text/event-stream")


def answer_of(usage: Any = None, text: Any = "a", finish: Any = "length") -> bytes:
    given = USAGE if usage is None else usage
    whole = (token(text), token("b", finish_reason=finish), event({"choices": [], "usage": given}))
    return stream(*whole, b"data: [DONE]\n\n")


Answer = bytes | Callable[[socket.socket, "HostileServer"], None]


@dataclass
class HostileServer:
    """Answers by path; ``answers`` replaces what a good server says.

    A key is a path, or ``*`` for every path. ``skip`` first requests are answered well.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    skip: int = 0
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    sent: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def good(self, path: str) -> bytes:
        if path == "/metrics":
            return response(METRICS.encode())
        if path == "/version":
            return response(b'{"version": "0.32.0"}')
        if path == "/v1/models":
            return response(json.dumps(MODELS).encode())
        if path in {"/v1/chat/completions", "/v1/completions"}:
            return answer_of()
        return response(b"")

    def handle(self, peer: socket.socket) -> None:
        seen = _request(peer)
        if seen is None:
            return
        self.seen.append(seen)
        wrong = self.answers.get(seen.path, self.answers.get("*"))
        if wrong is None or len(self.seen) <= self.skip:
            self.send(peer, self.good(seen.path))
        elif isinstance(wrong, bytes):
            self.send(peer, wrong)
        else:
            wrong(peer, self)

    def send(self, peer: socket.socket, data: bytes) -> None:
        peer.sendall(data)
        self.sent += len(data)


def _request(peer: socket.socket) -> Seen | None:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (chunk := peer.recv(65536)):
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
    }
    while len(body) < int(headers.get("content-length", 0)):
        if not (chunk := peer.recv(65536)):
            break
        body += chunk
    return Seen(method, path, headers, body)


@contextmanager
def serving(answers: dict[str, Answer] | None = None, skip: int = 0) -> Iterator[HostileServer]:
    """The server on a free port of 127.0.0.1, each connection in a thread."""
    server = HostileServer(answers or {}, skip)
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    server.url = f"http://127.0.0.1:{listening.getsockname()[1]}"

    def one(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, ValueError):
            server.handle(peer)
            peer.shutdown(socket.SHUT_WR)
            peer.settimeout(1.0)
            while peer.recv(65536):
                pass

    def accept() -> None:
        while not server.stopped.is_set():
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(5)


# ------------------------------------------------------------------------------------------
# misbehaviours of transport: any path


def slowly(data: bytes, pause_s: float = 0.2) -> Answer:
    def send(peer: socket.socket, server: HostileServer) -> None:
        for index in range(len(data)):
            if server.stopped.is_set():
                return
            server.send(peer, data[index : index + 1])
            time.sleep(pause_s)

    return send


def endlessly(head: bytes, chunk: bytes) -> Answer:
    def send(peer: socket.socket, server: HostileServer) -> None:
        server.send(peer, head)
        while not server.stopped.is_set():
            server.send(peer, chunk)

    return send


def reset_after(data: bytes) -> Answer:
    def send(peer: socket.socket, server: HostileServer) -> None:
        server.send(peer, data)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    return send


def silence(peer: socket.socket, server: HostileServer) -> None:
    server.stopped.wait(60)


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
)
UNENDING = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


def bomb(factor: int = 1 << 27) -> bytes:
    return gzip.compress(bytes(factor))


def text_in(charset: str) -> str:
    return f"Content-Type: text/plain; charset={charset}"


def redirect(status: int, to: str) -> bytes:
    return response(b"", f"{status} Elsewhere", f"Location: {to}")


TRANSPORT: dict[str, Callable[[], Answer]] = {
    "silence": lambda: silence,
    "slow headers": lambda: slowly(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 500),
    "slow body": lambda: slowly(response(b"z" * 500)),
    "endless headers": lambda: endlessly(b"HTTP/1.1 200 OK\r\n", b"X-More: yes\r\n" * 100),
    "endless header line": lambda: endlessly(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
    "endless status line": lambda: endlessly(b"HTTP/1.1 200 ", b"O" * 65536),
    "endless body": lambda: endlessly(UNENDING, b"x" * 65536),
    "endless empty lines": lambda: endlessly(UNENDING, b"\n" * 65536),
    "endless small events": lambda: endlessly(UNENDING, b"data: 1\n\n" * 4096),
    "endless comments": lambda: endlessly(UNENDING, b": ping\n\n" * 4096),
    "endless chunks of one byte": lambda: endlessly(CHUNKED, b"1\r\nx\r\n" * 4096),
    "endless chunk size": lambda: endlessly(CHUNKED, b"0" * 65536),
    "endless chunk extension": lambda: endlessly(CHUNKED + b"1;", b"e" * 65536),
    "endless trailers": lambda: endlessly(CHUNKED + b"0\r\n", b"X: y\r\n" * 1000),
    "endless interim answers": lambda: endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "error without end": lambda: endlessly(b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536),
    "huge line": lambda: response(b"data: " + b"x" * (32 << 20)),
    "gzip bomb": lambda: response(bomb(), "200 OK", "Content-Encoding: gzip"),
    "gzip, twice": lambda: response(
        gzip.compress(bomb()), "200 OK", "Content-Encoding: gzip, gzip"
    ),
    "deflate": lambda: response(b"x", "200 OK", "Content-Encoding: deflate"),
    "unknown coding": lambda: response(b"x", "200 OK", "Content-Encoding: zebra"),
    "HTTP/0.9": lambda: b"<html>old</html>",
    "another protocol": lambda: b"SSH-2.0-OpenSSH_9.9\r\n",
    "a TLS alert": lambda: b"\x15\x03\x01\x00\x02\x02\x0a",
    "nothing": lambda: b"",
    "zeros": lambda: bytes(1024),
    "lengths that contradict": lambda: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello"
    ),
    "length given twice": lambda: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "negative length": lambda: b"HTTP/1.1 200 OK\r\n" + b"Content-Length: -5\r\n\r\nhello",
    "length of 400 digits": lambda: (
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 400 + b"\r\n\r\nhello"
    ),
    "length and chunks": lambda: (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "length too long": lambda: b"HTTP/1.1 200 OK\r\n" + b"Content-Length: 500\r\n\r\nhello",
    "bad chunk": lambda: CHUNKED + b"zz\r\nhello\r\n",
    "chunk of 2^70": lambda: CHUNKED + b"400000000000000000\r\nhello\r\n",
    "status 999": lambda: response(b"x", "999 Odd"),
    "status of 5 digits": lambda: response(b"x", "20000 Odd"),
    "status 000": lambda: response(b"x", "000 Odd"),
    "status 101": lambda: response(b"", "101 Switching Protocols", "Upgrade: websocket"),
    "status 204": lambda: response(b"", "204 No Content", length=False),
    "status 304": lambda: response(b"", "304 Not Modified", length=False),
    "control characters": lambda: response(b"\x1b[2J\x07\x9b31m", "500 \x1b[2J"),
    "header with control characters": lambda: response(b"x", "200 OK", "X: \x1b[2J"),
    "UTF-16": lambda: response(
        "hello".encode("utf-16"), "200 OK", "Content-Type: text/plain; charset=utf-16"
    ),
    "charset that is no charset": lambda: response(
        b"x", "200 OK", "Content-Type: text/plain; charset=hex"
    ),
    "charset of 10,000 characters": lambda: response(
        b"x", "200 OK", "Content-Type: text/plain; charset=" + "x" * 7000
    ),
    "not UTF-8": lambda: response(b"\xff\xfe\xc3\x28\xed\xa0\x80" * 99),
    "reset": lambda: reset_after(b""),
    "cookies": lambda: response(b"x", "200 OK", *["Set-Cookie: a=b; Domain=example.org"] * 50),
    "digest challenge": lambda: response(b"", "401 No", 'WWW-Authenticate: Digest realm="x"'),
    "basic challenge": lambda: response(b"", "401 No", 'WWW-Authenticate: Basic realm="\x1b"'),
    "proxy challenge": lambda: response(b"", "407 No", 'Proxy-Authenticate: Basic realm="x"'),
    "refresh": lambda: response(b"x", "200 OK", "Refresh: 0; url=http://127.0.0.1:1/"),
}

NUMBERS: dict[str, str] = {
    "a string": '"4"',
    "negative": "-1",
    "a fraction": "4.5",
    "NaN": "NaN",
    "Infinity": "Infinity",
    "minus Infinity": "-Infinity",
    "1e999": "1e999",
    "2^53": str(2**53),
    "2^64": str(2**64),
    "400 digits": "9" * 400,
    "5,000 digits": "9" * 5000,
    "true": "true",
    "null": "null",
    "a list": "[4]",
    "an object": '{"n": 4}',
    "deep": "[" * 5000 + "]" * 5000,
    "very deep": "[" * 500_000 + "]" * 500_000,
}
TEXTS: dict[str, str] = {
    "a lone surrogate": '"\\ud800"',
    "a number": "7",
    "a list": '["a"]',
    "an object": '{"a": "b"}',
    "true": "true",
    "ESC": '"\\u001b[2J\\u0007"',
    "a newline": '"a\\nb"',
    "markup": '"<script>alert(1)</script> -->"',
    "a megabyte": json.dumps("m" * (1 << 20)),
    "NUL": '"\\u0000"',
    "empty": '""',
    "right to left": '"\\u202eabc"',
    "a path": '"../../../etc/passwd"',
}


def usage_text(number: str, name: str = "completion_tokens") -> bytes:
    other = "prompt_tokens" if name == "completion_tokens" else "completion_tokens"
    given = f'{{"choices": [], "usage": {{"{name}": {number}, "{other}": 4}}}}'
    return stream(token(), event(given), b"data: [DONE]\n\n")


def models_text(model: str, length: str = "512") -> bytes:
    return response(f'{{"data": [{{"id": {model}, "max_model_len": {length}}}]}}'.encode())


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
