"""Certificates of one's own for servers on loopback, made by the openssl command: a sound one, and ones that are not."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import pytest

Kind = Literal["sound", "expired", "not yet valid", "wrong host"]
_CONFIG = """
[ca]
default_ca = here
[here]
database = {folder}/index.txt
new_certs_dir = {folder}
serial = {folder}/serial
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[req]
distinguished_name = subject
[subject]
[names]
subjectAltName = {names}
basicConstraints = critical, CA:TRUE
"""


def certificate(folder: Path, kind: Kind = "sound") -> Path:
    """One PEM file with a key and a certificate that signs itself. Skips the test where there is no openssl."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("the openssl command is not there to make a certificate")
    folder.mkdir(parents=True, exist_ok=True)
    names = "DNS:other.example" if kind == "wrong host" else "IP:127.0.0.1, DNS:localhost"
    config, key, request = (folder / n for n in ("openssl.cnf", "key.pem", "request.pem"))
    config.write_text(_CONFIG.format(folder=folder.as_posix(), names=names), encoding="ascii")
    (folder / "index.txt").write_text("", encoding="ascii")
    (folder / "serial").write_text("01\n", encoding="ascii")
    now = datetime.now(timezone.utc)
    first, last = {"expired": (-9, -2), "not yet valid": (2, 9)}.get(kind, (-1, 9))
    start, end = (f"{now + timedelta(days=d):%Y%m%d%H%M%SZ}" for d in (first, last))
    _run(program, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
    _run(
        program, "req", "-new", "-key", str(key), "-subj", "/CN=loopback", "-config", str(config), "-out", str(request)
    )
    made = folder / "certificate.pem"
    _run(
        program, "ca", "-batch", "-selfsign", "-config", str(config), "-keyfile", str(key), "-in", str(request),
        "-startdate", start, "-enddate", end, "-notext", "-out", str(made),
    )  # fmt: skip
    both = folder / f"{kind.replace(' ', '-')}.pem"
    both.write_bytes(key.read_bytes() + made.read_bytes())
    return both


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
