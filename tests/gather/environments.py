"""Environments made of files: site-packages that are described by dist-info folders alone, and virtual environments."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def install(
    site: Path,
    name: str,
    version: str,
    *,
    requires: Sequence[str] = (),
    package: bool = True,
    files: dict[str, str] | None = None,
) -> Path:
    """A dist-info folder in `site`, with an import package unless told otherwise. Returns the dist-info folder."""
    site.mkdir(parents=True, exist_ok=True)
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n\nName: not-a-header\n", encoding="utf-8")
    for file, text in (files or {}).items():
        (info / file).write_text(text, encoding="utf-8")
    if package:
        module(site, name.replace("-", "_"))
    return info


def module(folder: Path, name: str, files: dict[str, str] | None = None) -> Path:
    """An import package."""
    root = folder / name
    for file, text in {"__init__.py": "", **(files or {})}.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def virtual_environment(folder: Path) -> tuple[Path, Path]:
    """The interpreter and the site-packages of an empty virtual environment of this Python (no pip, no ensurepip)."""
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    os.symlink(base, python)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    site = folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    site.mkdir(parents=True)
    return python, site


def executable(path: Path, text: str) -> Path:
    """A script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
