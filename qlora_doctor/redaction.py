"""Takes out of a text what must not leave this machine: secrets always, and on request what tells who and where.

Every rule replaces by a constant mark, so that the same text gives the same bytes, and what was equal stays equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

SECRET, USER, HOST, IP, UUID, SERIAL, EMAIL = (
    "<secret>", "<user>", "<host>", "<ip>", "<uuid>", "<serial>", "<email>",
)  # fmt: skip
# What stands in everybody's reports and says nothing about anybody.
PUBLIC = ("huggingface.co", "hf.co", "hf-mirror.com", "modelscope.cn", "github.com", "pytorch.org", "localhost")
PLAIN_USERS = frozenset(
    [
        "root",
        "user",
        "users",
        "ubuntu",
        "admin",
        "home",
        "jovyan",
        "vscode",
        "runner",
        "app",
        "node",
        "default",
        "public",
    ]
)

_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|api_org_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{12,}|"
    r"sk-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{12,}|xox[abeprs]-[\w-]{8,}|AIza[\w-]{20,}|npm_[A-Za-z0-9]{20,}|"
    r"pypi-[A-Za-z0-9_-]{16,}|nvapi-[\w-]{16,}|gsk_[A-Za-z0-9]{16,}|r8_[A-Za-z0-9]{16,}|ms-[0-9a-f]{8}-[0-9a-f-]{20,}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_URL_USER = re.compile(r"(://)[^/\s'\"<>]*@")
_PAIR_USER = re.compile(r"(^|[\s,;='\"])[^\s,;:/@\\'\"=]{1,128}:[^\s,;/@\\'\"]{1,128}@(?=[\w.\[-])")
_QUERY = re.compile(
    r"(?i)([?&](?:[\w-]*(?:token|key|secret|signature|credential|password|sig|policy)[\w-]*)=)[^&#\s'\"]+"
)
_HEADER = re.compile(
    r"(?i)\b((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:(?:bearer|basic|token|digest)\s+)?)[^\s'\",]+"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
_NAMED = re.compile(
    r"(?<![A-Za-z_])((?:[A-Z][A-Z0-9]{0,30}_){0,6}(?:TOKEN|API_?KEY|SECRET|SECRET_KEY|ACCESS_KEY(?:_ID)?|PASSWORD|PASSWD|CREDENTIALS?)"
    r"|(?:(?:hf|auth|use_auth|access|refresh|api|hub|bearer|wandb|openai|private)[_-])?token|(?:[a-z]{1,20}[_-]){0,4}"
    r"(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?key|password|passwd|passphrase))"
    r"(['\"]?\s*(?:=|:|\s)\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&)}\]'\"]+)"
)
_NO_SECRET = re.compile(
    r"(?i)['\"]?(?:true|false|none|null|yes|no|on|off|\d{1,6}|<[^<>]*>|\*+|\$\{?\w+\}?|os\.environ.*|getpass.*|args\..*|str|int|"
    r"optional.*)['\"]?$"
)
_LOGIN = re.compile(r"(?i)\b((?:wandb|huggingface-cli|hf auth|hf|modelscope) login (?:--\S+[ =])?)(?!-)\S+")


def secrets(text: str) -> str:
    """`text` without tokens, keys, passwords, and the user and password of a URL."""
    text = _KEY_BLOCK.sub(SECRET, text)
    text = _TOKENS.sub(SECRET, text)
    text = _URL_USER.sub(rf"\1{SECRET}@", text)
    text = _PAIR_USER.sub(rf"\1{SECRET}@", text)
    text = _QUERY.sub(rf"\1{SECRET}", text)
    text = _HEADER.sub(rf"\1{SECRET}", text)
    text = _BEARER.sub(rf"\1{SECRET}", text)
    text = _LOGIN.sub(rf"\1{SECRET}", text)
    return _NAMED.sub(_named, text)


def _named(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    spoken = not between.strip("'\" \t")
    # "the token is", "--token hf": after a mere space only an option's value is meant.
    if spoken and not match.string[: match.start()].endswith("--"):
        return match[0]
    if _NO_SECRET.match(value):
        return match[0]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{name}{between}{quote}{SECRET}{quote}"


_OPTION = re.compile(r"(?i)--?[\w-]*(?:token|api[_-]?key|secret|password|passwd)$")


def command(words: Sequence[str]) -> list[str]:
    """The words of a command without secrets, also where the option that names one is a word of its own."""
    shown = [secrets(word) for word in words]
    for i, word in enumerate(words[1:], 1):
        if _OPTION.match(words[i - 1]) and not word.startswith("-"):
            shown[i] = SECRET
    return shown


_HOME = re.compile(
    r"(?i)((?:/home|/Users|/usr/home|/export/home|/nfs/home|/scratch/users|[A-Z]:[\\/]+Users)[\\/]+)([^\\/\s'\":;,<>()\[\]]+)"
)
_HOME_WITH_SPACE = re.compile(r"(?i)([A-Z]:[\\/]+Users[\\/]+)([^\\/\n'\":;,<>]+)(?=[\\/])")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b")
_MAC = re.compile(r"\b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b")
_SERIAL = re.compile(
    r"(?i)\b((?:serial(?:[ _]?(?:number|no\.?))?|machine[ _-]id|board[ _]id)['\"]?\s*[:=]\s*['\"]?)([\w-]{6,})"
)
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63})+\b")
_AT = re.compile(r"(?<![\w/@.-])([A-Za-z_][\w.-]{0,63})@([A-Za-z][\w.-]{0,253})(?=[:\s$#~]|$)")
_IPV4 = re.compile(r"(?<![\w.=<>~!-])(?<!version )(?<!Version )((?:\d{1,3}\.){3}\d{1,3})(?![\w.]|-\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]*:)[0-9A-Fa-f:]{3,45}(?:%\w+)?(?![\w:])")
_URL_HOST = re.compile(r"(://(?:[^/@\s]*@)?)([A-Za-z0-9][\w.-]*)")
_SAID_HOST = re.compile(
    r"(?i)\b((?:host(?:name)?|master_addr|rdzv[_-]endpoint|nodelist|nodename|nodeid|server)['\"]?\s*[:=]\s*['\"]?)([A-Za-z][\w.-]*)"
)
_NCCL_HOST = re.compile(r"(?<![\w.:/-])([A-Za-z][\w.-]{0,253})(?=:\d+:\d+ \[\d+\])")
_W_AND_B = re.compile(r"(wandb\.ai/)([^/\s]+)(/[^/\s]+)?")


def private(text: str, names: Iterable[str] = (), hosts: Iterable[str] = ()) -> str:
    """`text` without secrets and without what tells whose machine it is.

    Left out: names of users and home folders, hosts that are not public, addresses, e-mail, UUIDs and serial numbers.
    `names` and `hosts` are users and machines that are known to be meant, wherever they stand.
    """
    text = secrets(text)
    text = _UUID.sub(UUID, text)
    text = _MAC.sub(SERIAL, text)
    text = _SERIAL.sub(rf"\1{SERIAL}", text)
    text = _EMAIL.sub(EMAIL, text)
    text = _HOME_WITH_SPACE.sub(rf"\1{USER}", text)
    text = _HOME.sub(rf"\1{USER}", text)
    text = _W_AND_B.sub(rf"\1{USER}", text)
    text = _URL_HOST.sub(_host, text)
    text = _SAID_HOST.sub(_host, text)
    text = _NCCL_HOST.sub(HOST, text)
    text = _AT.sub(f"{USER}@{HOST}", text)
    text = _IPV4.sub(_ipv4, text)
    text = _IPV6.sub(_ipv6, text)
    for mark, words in ((HOST, hosts), (USER, names)):
        for word in sorted(
            {w for w in words if len(w) > 2 and w.lower() not in PLAIN_USERS}, key=lambda w: (-len(w), w)
        ):
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", mark, text)
    return text


def _host(match: re.Match[str]) -> str:
    name = match[2].lower().rstrip(".")
    public = any(name == p or name.endswith("." + p) for p in PUBLIC)
    # An address has a rule of its own, which knows those that are nobody's.
    return match[0] if public or re.fullmatch(r"[\d.]+", name) else match[1] + HOST


def _ipv4(match: re.Match[str]) -> str:
    parts = [int(p) for p in match[1].split(".")]
    return match[0] if max(parts) > 255 or parts[0] in (0, 127) else IP


def _ipv6(match: re.Match[str]) -> str:
    from ipaddress import IPv6Address

    try:
        address = IPv6Address(match[0].partition("%")[0])
    except ValueError:
        return match[0]
    return match[0] if address.is_loopback or address.is_unspecified else IP


def users_in(text: str) -> set[str]:
    """The names of users whose home folders a text names."""
    return {m[2] for rule in (_HOME_WITH_SPACE, _HOME) for m in rule.finditer(text)} - {USER}


_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:token|api_?key|secret|password|passwd|credentials?)$")
_VERSIONS = ("version", "requires", "requirement", "cuda", "driver", "release", "libc")


def data(value: Any, rule: Callable[[str], str], name: str = "") -> Any:
    """JSON data with `rule` applied to each string in it; what a key names a secret is left out whole.

    Under keys that hold versions only secrets go, since `9.1.0.70` is a version there and no address.
    """
    if isinstance(value, str):
        if _SECRET_NAME.search(name) and value and not _NO_SECRET.match(value):
            return SECRET
        return secrets(value) if name in _VERSIONS else rule(value)
    if isinstance(value, Mapping):
        return {rule(str(k)): data(v, rule, str(k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [data(v, rule, name) for v in value]
    return value
