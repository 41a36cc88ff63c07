"""A Hub on loopback: real HTTP over a folder of models, that can misbehave on command.

It speaks what the real client asks for: the information on a model with sizes, files by revision with ranges and ETag,
the redirect of large files to another address, gated and unknown repositories, tokens. `misbehave` names what goes wrong
with every answer, or with the files alone (`only="resolve"`).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
HTML = b"<!DOCTYPE html><html><title>Log in to the network</title></html>"
MISBEHAVIOURS = (
    "refuse", "reset", "hang", "drip", "truncate", "wrong length", "html", "dead redirect", "redirect loop", "429", "503",
)  # fmt: skip


class HubServer(ThreadingHTTPServer):
    """Serves `root/owner/name/*` as repositories. `also` are names that every repository
    claims to hold. `asked` are the requests, with whether a token came along; `times` when."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.also: list[str] = []
        self.tokens: set[str] = {"hf_good"}
        self.misbehave = ""
        self.only = ""
        self.latency = 0.0
        self.asked: list[tuple[str, bool]] = []
        self.times: list[float] = []
        self.stop = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away in the middle is what many of these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        path = urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.asked.append((path, bool(token)))
        hub.times.append(time.perf_counter())
        time.sleep(hub.latency)
        wrong = hub.misbehave if hub.only in path else ""
        if wrong in ("429", "503"):
            return self._send(int(wrong), b'{"error":"not now"}', extra={"Retry-After": "60"})
        if wrong == "html":
            return self._send(200, HTML, "text/html")
        if wrong in ("dead redirect", "redirect loop"):
            place = _dead_address() + path if wrong == "dead redirect" else path
            return self._send(302, b"", extra={"Location": place})
        if wrong == "refuse":
            self.close_connection = True
            return None
        if wrong == "reset":
            return self._reset()
        if wrong == "hang":
            hub.stop.wait(30)
            self.close_connection = True
            return None
        if token and token not in hub.tokens:
            return self._error(401, "", "Invalid credentials in Authorization header")
        return self._route(path.strip("/").split("/"), bool(token))

    def _route(self, parts: list[str], token: bool) -> None:
        hub = self.server
        if parts[:2] == ["api", "models"]:
            if len(parts) == 2:
                return self._send(200, b"[]")
            name, rest = "/".join(parts[2:4]), parts[4:]
            folder = hub.root / name
            if not folder.is_dir():
                return self._error(404 if token else 401, "RepoNotFound", "Repository not found")
            if rest[:1] == ["revision"] and rest[1] not in ("main", SHA):
                return self._error(404, "RevisionNotFound", "Invalid rev id")
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in sorted(folder.iterdir())]
            files += [{"rfilename": name, "size": 9} for name in hub.also]
            gated = "manual" if name in hub.gated else False
            info = {"id": name, "modelId": name, "sha": SHA, "siblings": files, "private": False, "gated": gated}
            return self._send(200, json.dumps(info).encode("utf-8"))
        if len(parts) < 5 or parts[2] != "resolve":
            return self._error(404, "", "no such page")
        name, file = "/".join(parts[:2]), hub.root / parts[0] / parts[1] / parts[4]
        if name in hub.gated:
            return self._error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        if parts[3] not in ("main", SHA):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if not file.is_file():
            return self._error(404, "EntryNotFound", "Entry not found")
        return self._file(file)

    def _file(self, file: Path) -> None:
        size = file.stat().st_size
        start, end, status = 0, size - 1, 200
        wanted = self.headers.get("Range", "")
        extra = {
            "X-Repo-Commit": SHA,
            "ETag": f'"{hashlib.sha1(file.name.encode()).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if wanted.startswith("bytes=") and size:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first or 0), min(int(last or end), end), 206
            extra["Content-Range"] = f"bytes {start}-{end}/{size}"
        with file.open("rb") as opened:
            opened.seek(start)
            body = opened.read(end - start + 1)
        self._send(status, body, "application/octet-stream", extra)

    def _error(self, status: int, code: str, message: str) -> None:
        extra = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode("utf-8"), extra=extra)

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", extra: dict[str, str] | None = None
    ) -> None:
        wrong = self.server.misbehave if self.server.only in self.path else ""
        length = len(body) + (1000 if wrong == "wrong length" else 0)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if wrong in ("truncate", "wrong length"):
            self.wfile.write(body[: len(body) // 2] if wrong == "truncate" else body)
            self.close_connection = True
        elif wrong == "drip":
            for n in range(len(body)):
                self.wfile.write(body[n : n + 1])
                if self.server.stop.wait(0.5):
                    return
        else:
            self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _dead_address() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def hub_server(root: Path) -> Iterator[HubServer]:
    """A running server; proxies of the environment are kept out of its way by the test."""
    os.makedirs(root, exist_ok=True)
    server = HubServer(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
