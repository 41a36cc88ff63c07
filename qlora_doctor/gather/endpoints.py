"""Which address of the Hub is asked, and which other ones may be asked where it fails.

The one in force is the first of: an `endpoint=` argument, HF_ENDPOINT, the default. After it come mirrors, and only those
that somebody configured: QLORA_DOCTOR_MIRRORS, else `mirrors` of the project's pyproject.toml, else `mirrors` of the
user's own file. A mirror sees what is downloaded and can answer what it likes, so none is ever taken unasked.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from qlora_doctor.config import Config, checked_mirrors, read_user_mirrors
from qlora_doctor.facts import Hub

DEFAULT = Hub().endpoint
# Said in advice, never used unasked.
SUGGESTED = "https://hf-mirror.com"
VARIABLE = "QLORA_DOCTOR_MIRRORS"


def choose(environ: Mapping[str, str], config: Config, *, endpoint: str | None = None) -> tuple[str, ...]:
    """The addresses to ask, in order, each once: the one in force, then the configured mirrors.

    `config` are the project's settings (`qlora_doctor.config.nearest_config`), `endpoint` what the caller was told. The
    user's own file is read here.

    Raises:
        UsageError: a configured mirror is no http or https address; the message names where it stands.
    """
    return tuple(dict.fromkeys((in_force(environ, endpoint=endpoint), *mirrors(environ, config))))


def in_force(environ: Mapping[str, str], *, endpoint: str | None = None) -> str:
    """The address that huggingface_hub would ask, as it would spell it (nothing but slashes at the end is taken off)."""
    return (endpoint or "").rstrip("/") or environ.get("HF_ENDPOINT", "").rstrip("/") or DEFAULT


def mirrors(environ: Mapping[str, str], config: Config) -> tuple[str, ...]:
    """The configured mirrors: of the variable, where it is set (empty: none), else of the project, else of the user.

    Raises:
        UsageError: one of them is no http or https address.
    """
    named = environ.get(VARIABLE)
    if named is not None:
        return checked_mirrors(VARIABLE, "", [w for w in re.split(r"[\s,;]+", named) if w])
    return config.mirrors or read_user_mirrors(user_file(environ))


def user_file(environ: Mapping[str, str]) -> str:
    """The user's own settings: `qlora-doctor/config.toml` in the user's configuration folder. It may not exist."""
    if sys.platform == "win32":
        base = environ.get("APPDATA") or os.path.join("~", "AppData", "Roaming")
    elif sys.platform == "darwin":
        base = os.path.join("~", "Library", "Application Support")
    else:
        base = environ.get("XDG_CONFIG_HOME") or os.path.join("~", ".config")
    return os.path.join(os.path.expanduser(base), "qlora-doctor", "config.toml")
