"""Real S3 servers on loopback, and a proxy in front of them that fails as networks do.

    with s3_server(folder) as server, FaultyProxy(server.url, rate=0.01, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)  # or use_s3(monkeypatch, proxy.url)

Every folder in `folder` is a bucket of localbucket. moto, the other server, keeps its one bucket in
memory. Neither checks signatures; the proxy can refuse them.
"""

import http.client
import importlib.util
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

KEY_ID, SECRET = "AKIDEXAMPLE0000", "s3cr3t/with+signs0000"
BUCKET = "ocean"
SERVER_SECONDS = 30

REFUSALS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "429": (429, "TooManyRequests", "Too many requests."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "unknown_key": (403, "InvalidAccessKeyId", f"There is no key {KEY_ID} in our records."),
    "signature": (403, "SignatureDoesNotMatch", "The signature does not match."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
}
IN_THE_BODY = ("cut", "short", "flip", "hang")
TRANSIENT = ("500", "503", "stall", "reset", "cut", "flip")


@dataclass(frozen=True)
class Server:
    url: str
    folder: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _running(
    module: str, arguments: Sequence[str], record: Path, port: int | None = None
) -> Iterator[str]:
    """The URL of a server of that Python module."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"needs the S3 server {module}: pip install -e '.[test]'")
    url = f"http://127.0.0.1:{port or free_port()}"
    command = [sys.executable, "-m", module, "--port", url.rpartition(":")[2], *arguments]
    with open(record, "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + SERVER_SECONDS
        while not _answers(url):
            assert server.poll() is None, record.read_text()
            assert time.monotonic() < until, "the S3 server does not answer"
            time.sleep(0.05)
        yield url
    finally:
        server.terminate()
        server.wait(SERVER_SECONDS)


@contextmanager
def s3_server(folder: Path, port: int | None = None) -> Iterator[Server]:
    """localbucket: the buckets in `folder`; one of them is BUCKET."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    record = folder.parent / f"{folder.name}.log"
    with _running("localbucket", [str(folder)], record, port) as url:
        yield Server(url, folder)


@contextmanager
def moto_server(folder: Path) -> Iterator[str]:
    """moto with the bucket BUCKET, and its log in `folder`; yields its URL."""
    with _running("moto.server", ["--host", "127.0.0.1"], folder / "moto.log") as url:
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=SERVER_SECONDS).close()
        yield url


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Give this process, and those it starts, the environment of a user of the server at `url`."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


class FaultyProxy:
    """Passes HTTP on to `upstream`, with faults.

    Each request meets a fault with probability `rate`, one of `kinds` at random; `next` goes before
    that: the faults of the next requests for objects, `None` for a request that is well. Kinds: those
    of REFUSALS; `reset` (no answer), `lost` (done, but no answer), `stall` (an answer after `stall`
    seconds); and in the body of an object `cut` (half of it), `short` (half of it, said to be all),
    `flip` (one bit), `hang` (`stall` seconds after half of it).
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        rate: float = 0.0,
        kinds: Sequence[str] = TRANSIENT,
        stall: float = 30.0,
        delay: float = 0.0,
    ) -> None:
        self.upstream = urlsplit(upstream)
        self.rate, self.kinds, self.stall, self.delay = rate, kinds, stall, delay
        self._script: deque[str | None] = deque()
        self._failures: deque[str] = deque()
        self.faults: Counter[str] = Counter()
        """How often each kind was done."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, `bucket/key` and the header `Range` of every request."""
        self.parts: Counter[str] = Counter()
        """How many parts of a multipart upload came, by `bucket/key`."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._server = _QuietServer(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def next(self, faults: Iterable[str | None]) -> None:
        """The faults of the next requests for objects; one in the body waits for a GET."""
        self._script.extend(faults)

    def fail(self, times: int, kind: str) -> None:
        """Let the next requests fail, whatever they are for."""
        self._failures.extend([kind] * times)

    def downloads(self, key: str) -> int:
        """How often a GET began at the first byte of the object `bucket/key`."""
        return sum(
            method == "GET" and path == key and (not span or span.startswith("bytes=0-"))
            for method, path, span in self.requests
        )

    def draw(self, method: str, key: str, span: str, of_object: bool) -> str | None:
        """Note a request, and choose its fault."""
        with self._lock:
            self.requests.append((method, key, span))
            fault: str | None = None
            if self._failures:
                fault = self._failures.popleft()
            elif self._script and of_object:
                fault = self._script[0]
                if fault in IN_THE_BODY and method != "GET":
                    return None
                self._script.popleft()
            elif self._random.random() < self.rate:
                fault = self._random.choice(self.kinds)
            if fault in IN_THE_BODY and not (method == "GET" and of_object):
                return None
            if fault:
                self.faults[fault] += 1
            return fault

    def wait(self, seconds: float) -> None:
        self._closed.wait(seconds)

    def flip(self, body: bytes) -> bytes:
        with self._lock:
            bit = self._random.randrange(8 * len(body))
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        return bytes(flipped)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has given up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _QuietServer

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def handle_any(self) -> None:
        proxy = self.server.proxy
        body = self._body()
        target = urlsplit(self.path)
        key = unquote(target.path.strip("/"))
        of_object = "/" in key and not target.query.startswith(("list-type", "prefix"))
        if "partNumber=" in target.query:
            proxy.parts[key] += 1
        fault = proxy.draw(self.command, key, self.headers.get("Range", ""), of_object)
        proxy.wait(proxy.delay)
        if fault == "reset":
            self._reset()
        elif fault in REFUSALS:
            self._refuse(*REFUSALS[fault])
        else:
            if fault == "stall":
                proxy.wait(proxy.stall)
            self._pass_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        proxy = self.server.proxy
        passed = ("expect", "transfer-encoding", "content-length", "connection")
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in passed
        }
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        upstream = http.client.HTTPConnection(
            str(proxy.upstream.hostname), proxy.upstream.port, timeout=SERVER_SECONDS
        )
        try:
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            content = answer.read()
            if fault == "short":
                content = content[: len(content) // 2]
        finally:
            upstream.close()
        length = len(content) if self.command != "HEAD" else answer.getheader("Content-Length", "0")
        if fault == "lost":
            self._reset()
            return
        self._head(answer.status, dict(answer.getheaders()), length)
        if fault == "flip" and content:
            content = proxy.flip(content)
        if fault in ("cut", "hang"):
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            if fault == "cut":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            proxy.wait(proxy.stall)
            content = content[len(content) // 2 :]
        self.wfile.write(content)

    def _head(self, status: int, headers: Mapping[str, str], length: int | str) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{code}</Code><Message>{message}</Message>"
            "<RequestId>0</RequestId></Error>"
        ).encode()
        self._head(status, {"Content-Type": "application/xml"}, len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""


@contextmanager
def silent_port() -> Iterator[str]:
    """The URL of a port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
