"""A Hub on loopback: real HTTP or HTTPS over a folder of models, that can misbehave on command.

It speaks what the real client asks for: the information on a model with sizes and ETag (`If-None-Match` gives 304), the
tree of a revision with the hashes of large files, files by revision with ranges and ETag, a search, and tokens. With
`storage` set, weight files are redirected there, as the Hub does with LFS and Xet; with `xet` set, they also name the
storage that hf_xet asks. Repositories can be gated, private or renamed, tokens expired or without a right.

`misbehave` names what goes wrong with every answer, or with those whose path holds `only`. A status (`"503"`) is answered
as such. `certificate` (tests/certificates.py) makes it HTTPS. `python tests/hub_server.py FOLDER` serves a folder by hand.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
HTML = b"<!DOCTYPE html><html><title>Log in to the network</title></html>"
# `portal` redirects to a login page at `storage`,
# `reset midway` cuts after `after` bytes of a body, `flapping` resets every other request, `missing` is a mirror's own 404.
MISBEHAVIOURS = (
    "refuse", "reset", "reset midway", "hang", "drip", "truncate", "wrong length", "html", "portal", "missing", "flapping",
    "dead redirect", "redirect loop", "429", "500", "503",
)  # fmt: skip
WEIGHTS = (".safetensors", ".bin")
LARGEST_HASHED = 64 * 2**20
FINE_GRAINED = (
    "Please enable access to public gated repositories in your fine-grained token settings to view this repository."
)


class HubServer(ThreadingHTTPServer):
    """Serves `root/owner/name/*` as repositories. `also` are names that every repository claims to hold.

    `tokens` are known; `expired` were once; `fine_grained` are known and lack the right to gated repositories. `gated`
    repositories may be read by nobody, `private` ones by tokens alone, `renamed` maps an old id to the one it has now.
    `asked` are the requests, with whether a token came along, `times` when they came. `ranges=False` ignores ranges.
    `packed` answers in gzip, whatever was asked for. `xet_home` is the Hub that the way to the xet storage is said to be at.
    `outlasted` counts the clients that waited until a hanging or dripping answer was through.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, root: Path, certificate: Path | None = None, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.also: list[str] = []
        self.tokens: set[str] = {"hf_good"}
        self.expired: set[str] = set()
        self.fine_grained: set[str] = set()
        self.storage = ""
        self.xet = ""
        self.xet_home = ""
        self.ranges = True
        self.misbehave = ""
        self.only = ""
        self.after = 100
        self.packed = False
        self.latency = 0.0
        self.asked: list[tuple[str, bool]] = []
        self.times: list[float] = []
        self.outlasted = 0
        self.stop = threading.Event()
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake belongs to the thread of the request, not to the one that accepts.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.scheme = "https"

    @property
    def address(self) -> str:
        return f"{self.scheme}://{self.server_address[0]!s}:{self.server_address[1]}"

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
        wrong = self._wrong()
        if wrong.isdigit():
            return self._send(int(wrong), b'{"error":"not now"}', extra={"Retry-After": "60"})
        if wrong in ("html", "missing"):
            return self._send(200 if wrong == "html" else 404, HTML, "text/html")
        if wrong in ("dead redirect", "redirect loop", "portal"):
            place = {"dead redirect": dead_address() + path, "portal": f"{hub.storage}/login"}.get(wrong, path)
            return self._send(302, b"", extra={"Location": place})
        if wrong == "refuse":
            self.close_connection = True
            return None
        if wrong == "reset" or (wrong == "flapping" and len(hub.asked) % 2):
            return self._reset()
        if wrong == "hang":
            hub.outlasted += not hub.stop.wait(30)
            self.close_connection = True
            return None
        if token in hub.expired:
            return self._error(401, "", 'User Access Token "mine" is expired')
        if token and token not in hub.tokens | hub.fine_grained:
            return self._error(401, "", "Invalid credentials in Authorization header")
        return self._route(path.strip("/").split("/"), token)

    def _wrong(self) -> str:
        return self.server.misbehave if self.server.only in self.path else ""

    def _route(self, parts: list[str], token: str) -> None:
        hub = self.server
        if parts[:2] == ["api", "models"]:
            return self._api(parts[2:], token)
        if parts[0] == "stored":
            return self._file(hub.root.joinpath(*parts[1:]), with_commit=False)
        if len(parts) < 5 or parts[2] != "resolve":
            return self._error(404, "", "no such page")
        name, file = "/".join(parts[:2]), hub.root / parts[0] / parts[1] / "/".join(parts[4:])
        if self._barred(name, token, parts[2:]):
            return None
        if name in hub.gated:
            if token in hub.fine_grained:
                return self._error(403, "GatedRepo", FINE_GRAINED)
            return self._error(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        if parts[3] not in ("main", SHA):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if not file.is_file():
            return self._error(404, "EntryNotFound", "Entry not found")
        if hub.storage and file.suffix in WEIGHTS:
            return self._stored(name, file)
        return self._file(file)

    def _api(self, parts: list[str], token: str) -> None:
        hub = self.server
        if not parts:
            return self._send(200, json.dumps(self._found()).encode("utf-8"))
        name, rest = "/".join(parts[:2]), parts[2:]
        if self._barred(name, token, rest):
            return None
        if rest[:1] == ["xet-read-token"]:
            extra = {"X-Xet-Cas-Url": hub.xet, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": "4102444800"}
            return self._send(200, b"{}", extra=extra)
        if rest[:1] in (["revision"], ["tree"]) and (len(rest) < 2 or rest[1] not in ("main", SHA)):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        folder = hub.root / name
        if rest[:1] == ["tree"]:
            return self._send(200, json.dumps([_tree_entry(p) for p in sorted(folder.iterdir())]).encode("utf-8"))
        files: list[dict[str, Any]] = [{"rfilename": p.name, **_sizes(p)} for p in sorted(folder.iterdir())]
        files += [{"rfilename": name, "size": 9} for name in hub.also]
        gated = "manual" if name in hub.gated else False
        info = {"id": name, "modelId": name, "sha": SHA, "siblings": files, "private": False, "gated": gated}
        body = json.dumps(info).encode("utf-8")
        etag = f'W/"{hashlib.sha1(body).hexdigest()}"'
        if self.headers.get("If-None-Match") == etag:
            return self._send(304, b"", extra={"ETag": etag})
        return self._send(200, body, extra={"ETag": etag})

    def _barred(self, name: str, token: str, rest: list[str]) -> bool:
        """Whether the request ended here: the repository is not there, or not for this token, or elsewhere now."""
        hub = self.server
        if name in hub.renamed:
            place = self.path.replace(f"/{name}", f"/{hub.renamed[name]}", 1)
            self._send(307, b"", extra={"Location": place})
        elif not (hub.root / name).is_dir() or (name in hub.private and token not in hub.tokens):
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
        else:
            return False
        return True

    def _found(self) -> list[dict[str, str]]:
        """The repositories that a search finds, by a part of the name and by the owner."""
        hub = self.server
        wanted = {k: v[0].lower() for k, v in parse_qs(urlsplit(self.path).query).items()}
        names = [f"{p.parent.name}/{p.name}" for p in sorted(hub.root.glob("*/*")) if p.is_dir()]
        return [
            {"id": n, "modelId": n}
            for n in names
            if n not in hub.private
            and wanted.get("search", "") in n.lower()
            and n.lower().startswith(f"{wanted['author']}/" if "author" in wanted else "")
        ]

    def _stored(self, name: str, file: Path) -> None:
        """A large file: the redirect to the storage, and where hf_xet would go instead."""
        hub = self.server
        size = str(file.stat().st_size)
        extra = {
            "Location": f"{hub.storage}/stored/{name}/{file.name}?signature=once",
            "X-Repo-Commit": SHA,
            "X-Linked-Size": size,
            "X-Linked-ETag": f'"{_sha256(file)}"',
        }
        if hub.xet:
            route = f"{hub.xet_home or hub.address}/api/models/{name}/xet-read-token/{SHA}"
            extra |= {"X-Xet-Hash": "ab" * 32, "Link": f'<{route}>; rel="xet-auth", <{hub.xet}/x>; rel="other"'}
        self._send(302, b"", extra=extra)

    def _file(self, file: Path, with_commit: bool = True) -> None:
        if not file.is_file():
            return self._error(404, "EntryNotFound", "Entry not found")
        size = file.stat().st_size
        start, end, status = 0, size - 1, 200
        wanted = self.headers.get("Range", "")
        extra = {"ETag": f'"{_sha256(file)}"', "Accept-Ranges": "bytes"}
        if with_commit:
            extra["X-Repo-Commit"] = SHA
        if wanted.startswith("bytes=") and size and self.server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first or 0), min(int(last or end), end), 206
            extra["Content-Range"] = f"bytes {start}-{end}/{size}"
        with file.open("rb") as opened:
            opened.seek(start)
            body = opened.read(end - start + 1)
        return self._send(status, body, "application/octet-stream", extra)

    def _error(self, status: int, code: str, message: str) -> None:
        extra = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._send(status, json.dumps({"error": message}).encode("utf-8"), extra=extra)

    def _send(
        self, status: int, body: bytes, kind: str = "application/json", extra: dict[str, str] | None = None
    ) -> None:
        wrong = self._wrong()
        if self.server.packed:
            body, extra = gzip.compress(body), {**(extra or {}), "Content-Encoding": "gzip"}
        length = len(body) + (1000 if wrong == "wrong length" else 0)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(length), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or status == 304:
            return
        if wrong in ("truncate", "wrong length"):
            self.wfile.write(body[: len(body) // 2] if wrong == "truncate" else body)
            self.close_connection = True
        elif wrong == "reset midway" and len(body) > self.server.after:
            self.wfile.write(body[: self.server.after])
            self.wfile.flush()
            self._reset()
        elif wrong == "drip":
            for n in range(len(body)):
                self.wfile.write(body[n : n + 1])
                if self.server.stop.wait(0.5):
                    return
            self.server.outlasted += bool(body)
        else:
            self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _sha256(file: Path) -> str:
    """The hash of a file; of one that is too large to be read each time, a stand-in that is not its hash."""
    size = file.stat().st_size
    return hashlib.sha256(file.read_bytes() if size <= LARGEST_HASHED else f"{file} {size}".encode()).hexdigest()


def _sizes(file: Path) -> dict[str, Any]:
    """The size, and of a weight file what LFS says of it (no hash where the file is too large to be read)."""
    size = file.stat().st_size
    if file.suffix not in WEIGHTS or size > LARGEST_HASHED:
        return {"size": size}
    return {"size": size, "lfs": {"sha256": _sha256(file), "size": size, "pointerSize": 134}}


def _tree_entry(file: Path) -> dict[str, Any]:
    sizes = _sizes(file)
    oid = hashlib.sha1(file.name.encode()).hexdigest()
    entry = {"type": "file", "path": file.name, "oid": oid, "size": sizes["size"]}
    if "lfs" in sizes:
        entry["lfs"] = {"oid": sizes["lfs"]["sha256"], "size": sizes["size"], "pointerSize": 134}
    return entry


def dead_address() -> str:
    """An address of this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def hub_server(root: Path, certificate: Path | None = None, host: str = "127.0.0.1") -> Iterator[HubServer]:
    """A running server; proxies of the environment are kept out of its way by the test."""
    os.makedirs(root, exist_ok=True)
    server = HubServer(root, certificate, host)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with hub_server(Path(sys.argv[1])) as running:
        print(f"HF_ENDPOINT={running.address}", flush=True)
        running.stop.wait()
