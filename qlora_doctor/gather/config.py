"""Settings files as requests: JSON, YAML and TOML whose keys are training or load arguments.

Recognised by their own key names: LLaMA-Factory, axolotl, ms-swift; anything else by the names of transformers, TRL and
PEFT. Values are put under transformers' names, so that the same checks judge them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_doctor.gather import config_keys as keys
from qlora_doctor.gather.source_text import Text, Unreadable, decode, read_bytes
from qlora_doctor.request import LoadRequest, Requests, TrainRequest
from qlora_doctor.source import Call, Dotted, Script, Site, Value

_MAX_BYTES = 2 * 2**20
_MAX_DEPTH = 40


def read_config(path: str | Path, data: bytes | None = None) -> tuple[Script, Requests]:
    """What a settings file asks for; no requests where it is not one, a `problem` where it cannot be read."""
    import hashlib

    path = Path(path)
    failed = Script(str(path), kind="config")
    try:
        raw = read_bytes(path, _MAX_BYTES) if data is None else data
        text = decode(raw)
        tree = _parse(path.suffix.lower(), text.text)
    except Unreadable as error:
        return Script(str(path), kind="config", problem=str(error), problem_line=getattr(error, "line", 0)), Requests()
    sha256 = hashlib.sha256(raw).hexdigest()
    if not isinstance(tree, Mapping):
        return Script(str(path), kind="config", sha256=sha256, encoding=text.encoding), Requests()
    flat = _flattened(tree)
    layout = keys.layout_of(flat)
    script = Script(failed.path, kind="config", format=layout, sha256=sha256, encoding=text.encoding)
    if not layout:
        return script, Requests()
    return script, _requests(flat, layout, _Lines(str(path), sha256, text))


class _Problem(Unreadable):
    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def _parse(suffix: str, text: str) -> Any:
    try:
        if suffix == ".json":
            return _json(text)
        if suffix == ".toml":
            return _toml(text)
        return _yaml(text)
    except RecursionError:
        raise _Problem("it is nested too deeply") from None


def _json(text: str) -> Any:
    import json

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found and key in keys.ALL:
                raise _Problem(f"the key {key!r} stands there twice; only the last would count", _line_of(text, key))
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise _Problem(f"it is not valid JSON: {error.msg}", error.lineno) from None
    except ValueError as error:
        raise _Problem(f"it is not valid JSON: {error}") from None


def _toml(text: str) -> Any:
    try:
        import tomllib
    except ModuleNotFoundError:  # before Python 3.11
        import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line (\d+)", str(error))
        raise _Problem(f"it is not valid TOML: {error}", int(at.group(1)) if at else 0) from None


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise _Problem("reading YAML needs PyYAML: pip install pyyaml") from None
    # An alias can unfold to gigabytes; no settings file needs more than a few.
    if len(re.findall(r"(?m)(?<![\w\"'])\*\w+", text)) > 100:
        raise _Problem("it holds more than 100 aliases")
    deepest = max((len(line) - len(line.lstrip(" ")) for line in text.split("\n")), default=0)
    if deepest > 20 * _MAX_DEPTH or text.count("[") > 5000 or text.count("{") > 5000:
        raise _Problem("it is nested too deeply")
    try:
        twice = _twice(yaml.compose(text, Loader=yaml.SafeLoader))
        if twice is not None:
            raise _Problem(f"the key {twice[0]!r} stands there twice; only the last would count", twice[1])
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        what = getattr(error, "problem", None) or "it cannot be parsed"
        raise _Problem(f"it is not valid YAML: {what}", line) from None
    except ValueError as error:
        raise _Problem(f"it is not valid YAML: {error}") from None


def _twice(node: Any) -> tuple[str, int] | None:
    """The first known key that the top mapping holds twice."""
    seen: set[str] = set()
    for key, _ in getattr(node, "value", ()) if getattr(node, "id", "") == "mapping" else ():
        name = getattr(key, "value", "")
        if isinstance(name, str) and name in keys.ALL:
            if name in seen:
                return name, key.start_mark.line + 1
            seen.add(name)
    return None


def _flattened(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys of a file, those of its sections after them; a section that is itself an argument stays whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and str(key) not in keys.SECTIONS:
            for inner, item in value.items():
                if isinstance(item, Mapping) and str(inner) not in keys.SECTIONS:
                    for deepest, leaf in item.items():
                        flat.setdefault(str(deepest), leaf)
                else:
                    flat.setdefault(str(inner), item)
        elif isinstance(value, Mapping):
            flat[str(key)] = dict(value)
        else:
            flat[str(key)] = value
    return flat


def _line_of(text: str, key: str) -> int:
    found = [m.start() for m in re.finditer(rf"[\"']?\b{re.escape(key)}\b[\"']?\s*[:=]", text)]
    return text.count("\n", 0, found[-1]) + 1 if found else 0


_SCALAR = re.compile(r"""\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|\[[^\]]*\]|[^,}\]#\s][^,}\]#]*?(?=\s*(?:[,}\]#]|$)))""")


class _Lines:
    """Where keys stand. Cheap: the first line that sets a key of this name."""

    def __init__(self, path: str, sha256: str, text: Text) -> None:
        self.path, self.sha256 = path, sha256
        self.found: dict[str, tuple[int, int, int]] = {}
        for number, line in enumerate(text.lines, 1):
            for match in re.finditer(r"[\"']?([A-Za-z_][\w.-]*)[\"']?\s*[:=]", line):
                name = match.group(1)
                if name in keys.ALL and name not in self.found:
                    start = text.offset(number, len(line[: match.start()].encode()))
                    value = _SCALAR.match(line, match.end())
                    end = text.offset(number, len(line[: value.end() if value else match.end()].encode()))
                    self.found[name] = (number, start, end)

    def site(self, names: Mapping[str, str]) -> Site:
        """The place of the first of these keys, with the range of each under its transformers name."""
        places = {new: self.found[old] for new, old in names.items() if old in self.found}
        if not places:
            return Site(self.path, 1, 1, 1, sha256=self.sha256)
        line, start, end = min(places.values())
        spans = {name: (s, e) for name, (_, s, e) in places.items()}
        return Site(self.path, line, 1, line, start, end, None, self.sha256, spans)


def _requests(flat: Mapping[str, Any], layout: str, lines: _Lines) -> Requests:
    load_names = {new: old for new, old in keys.LOAD[layout].items() if old in flat}
    if layout == "transformers" and "pretrained_model_name_or_path" not in load_names:
        name = next((n for n in keys.MODEL_NAMES if isinstance(flat.get(n), str)), "")
        if name:
            load_names["pretrained_model_name_or_path"] = name
    load = {new: _value(flat[old]) for new, old in load_names.items()}
    quantization = _quantization(flat, layout, lines)
    if quantization is not None:
        load["quantization_config"] = quantization
        # The file's `load_in_4bit` goes into the configuration; no one passes it to the load as well.
        load.pop("load_in_4bit", None)
        load.pop("load_in_8bit", None)
    for name in ("dtype", "torch_dtype"):
        if name in load:
            load[name] = _dtype(load[name])
    if layout != "transformers":
        _own_dtype(flat, load)
    function = keys.LOADER[layout]
    loads: tuple[LoadRequest, ...] = ()
    if load.get("pretrained_model_name_or_path") is not None or quantization is not None:
        loads = (LoadRequest(Call(function, load, _why_open(layout), lines.site(load_names)), source="config"),)
    train = _train(flat, layout, lines, loads[0] if loads else None)
    return Requests(loads, () if train is None else (train,))


def _why_open(layout: str) -> str:
    if layout == "transformers":
        return "the script that reads this file may pass more"
    return f"{layout} adds arguments of its own"


def _train(flat: Mapping[str, Any], layout: str, lines: _Lines, load: LoadRequest | None) -> TrainRequest | None:
    known = {old: new for new, old in keys.settings(layout).items()}
    names = {known[old]: old for old in flat if old in known and not isinstance(flat[old], Mapping)}
    if not names:
        return None
    if not (set(names) - keys.WEAK) and load is None:
        return None
    settings = {new: _value(flat[old]) for new, old in names.items()}
    lora_names = {new: old for new, old in keys.LORA[layout].items() if old in flat}
    adapters = keys.adapters(flat, layout)
    lora = None
    if lora_names or adapters:
        values = {new: _value(flat[old]) for new, old in lora_names.items()}
        lora = Call(keys.FUNCTION[layout][1], keys.tidy_lora(values), _why_open(layout), lines.site(lora_names))
    if adapters is False:
        lora = None
    trainer, settings_function = keys.FUNCTION[layout][0], keys.FUNCTION[layout][2]
    site = lines.site(names)
    return TrainRequest(
        trainer=Call(trainer, {}, _why_open(layout), site),
        settings=Call(settings_function, settings, _why_open(layout), site),
        lora=lora,
        load=load,
        prepared=True if layout != "transformers" else None,
        peft=adapters if adapters is not None else (True if lora is not None else None),
        source="config",
    )


def _quantization(flat: Mapping[str, Any], layout: str, lines: _Lines) -> Call | None:
    nested = flat.get("quantization_config", flat.get("quantization", flat.get("bnb_config")))
    inner = dict(nested) if isinstance(nested, Mapping) else {}
    source = {**{k: v for k, v in flat.items() if k in keys.BNB}, **{k: v for k, v in inner.items() if k in keys.BNB}}
    bits = flat.get(keys.BITS.get(layout, ""))
    if bits in (4, 8, "4", "8") and keys.bitsandbytes(flat, layout):
        source[f"load_in_{bits}bit"] = True
    method = flat.get("adapter")
    if layout == "axolotl" and method == "qlora":
        source.setdefault("load_in_4bit", flat.get("load_in_4bit", True))
    if not any(source.get(f"load_in_{b}bit") for b in (4, 8)):
        return None
    arguments: dict[str, Value] = {}
    for name, value in source.items():
        arguments[name] = _dtype(_value(value)) if name.endswith("_dtype") else _value(value)
    for new, old in keys.BNB_OWN.get(layout, {}).items():
        if old in flat:
            arguments[new] = _value(flat[old])
    places = {name: name for name in source}
    return Call("transformers.BitsAndBytesConfig", arguments, _why_open(layout), lines.site(places))


def _own_dtype(flat: Mapping[str, Any], load: dict[str, Value]) -> None:
    """LLaMA-Factory, axolotl and ms-swift take the load's dtype from `bf16` and `fp16`."""
    if "dtype" in load or "torch_dtype" in load:
        return
    for key, name in (("bf16", "bfloat16"), ("bfloat16", "bfloat16"), ("fp16", "float16"), ("float16", "float16")):
        if flat.get(key) is True:
            load["dtype"] = Dotted(f"torch.{name}")
            return


def _dtype(value: Value) -> Value:
    if isinstance(value, str):
        name = value.removeprefix("torch.")
        name = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}.get(name, name)
        if re.fullmatch(r"b?float\d+", name):
            return Dotted(f"torch.{name}")
    return value


def _value(value: Any, depth: int = 0) -> Value:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 as text.
        if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            return float(value)
        return value
    if depth > 6:
        return None
    if isinstance(value, (list, tuple)):
        return tuple(_value(v, depth + 1) for v in value)
    if isinstance(value, Mapping):
        return {str(k): _value(v, depth + 1) for k, v in value.items()}
    return str(value)
