"""What transformers and PEFT state in their own source: minimum versions, architectures, public names, optimizers."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from qlora_doctor.gather.sources import Sources, definition, parse, pieces

_CONSTANT = re.compile(r'^(\w+)_MIN_VERSION(?:\s*:\s*\w+)?\s*=\s*["\']([\d.]+\w*)["\']', re.MULTILINE)
_PEFT = re.compile(r'^MIN_PEFT_VERSION\s*=\s*["\']([\d.]+)["\']', re.MULTILINE)
_TORCH = re.compile(r"Disabling PyTorch because PyTorch *>= *([\d.]*\d) is required")
# Floors of one feature of torch, not of a package of that name.
_NO_PACKAGE = ("fsdp", "xla-fsdpv2")


def minimums(sources: Sources) -> dict[str, str]:
    """Floors that transformers enforces when a feature is used: `{"accelerate": "1.1.0", "peft": "0.20.0"}`."""
    found = {}
    utilities = sources.module("transformers.utils.import_utils")
    if utilities is not None:
        found = {m[1].lower().replace("_", "-"): m[2] for m in _CONSTANT.finditer(utilities.text)}
        torch = _TORCH.search(utilities.text)
        if torch is not None:
            found["torch"] = torch[1]
    for name in ("transformers.integrations.peft", "transformers.utils.peft_utils"):
        module = sources.module(name)
        peft = _PEFT.search(module.text) if module is not None else None
        if peft is not None:
            found.setdefault("peft", peft[1])
    return {name: version for name, version in sorted(found.items()) if name not in _NO_PACKAGE}


def import_requirements(sources: Sources) -> list[str]:
    """The requirements that `import transformers` checks.

    accelerate is left out: it is checked only where it is new enough already.
    """
    table = sources.module("transformers.dependency_versions_table")
    checks = sources.module("transformers.dependency_versions_check")
    if table is None or checks is None:
        return []
    deps = {k: v for k, v in _entries(_assigned(table.text, "deps")) if isinstance(v, str)}
    wanted = _assigned(checks.text, "pkgs_to_check_at_runtime")
    names = [n.value for n in ast.walk(wanted) if isinstance(n, ast.Constant)] if wanted is not None else []
    if any(isinstance(n, ast.Name) for n in ast.walk(wanted)) if wanted is not None else False:
        return []
    return [deps[str(n)] for n in names if str(n) in deps and n != "accelerate"]


def model_types(sources: Sources) -> list[str]:
    """The architectures that AutoConfig knows, by `model_type`."""
    found: set[str] = set()
    for name in ("auto_mappings", "configuration_auto"):
        module = sources.module(f"transformers.models.auto.{name}")
        if module is None:
            continue
        for _, piece in pieces(module.text, r"CONFIG_MAPPING_NAMES\b(?:\s*[:=]|\.update\()"):
            tree = parse(piece)
            for node in ast.walk(tree) if tree is not None else ():
                found.update(key for key, _ in _entries(node))
    return sorted(found)


def optimizers(sources: Sources) -> list[str]:
    """The values that `optim=` takes."""
    module = sources.module("transformers.training_args")
    names = definition(module, "OptimizerNames") if module is not None else None
    body = names.body() if names is not None and not isinstance(names, tuple) else None
    if body is None:
        return []
    values = [n.value for n in body.body if isinstance(n, ast.Assign)]
    return [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]


def lora_defaults(sources: Sources) -> list[str]:
    """The model types for which PEFT knows LoRA target modules."""
    for name in ("peft.utils.constants", "peft.utils.other"):
        module = sources.module(name)
        if module is None:
            continue
        value = _assigned(module.text, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING")
        if value is not None:
            return sorted(key for key, _ in _entries(value))
    return []


def _assigned(text: str, name: str) -> ast.expr | None:
    """The value that a top-level name is given."""
    for _, piece in pieces(text, rf"{name}\b\s*(?::[^=\n]+)?="):
        tree = parse(piece)
        if tree is not None and tree.body and isinstance(tree.body[0], (ast.Assign, ast.AnnAssign)):
            return tree.body[0].value
    return None


def _entries(node: ast.AST | None) -> Iterator[tuple[str, Any]]:
    """The constant keys of a dict display, or of a list of pairs, with their values where these are constants."""
    if isinstance(node, ast.Dict):
        pairs = list(zip(node.keys, node.values, strict=True))
    elif isinstance(node, ast.List):
        pairs = [(e.elts[0], e.elts[1]) for e in node.elts if isinstance(e, ast.Tuple) and len(e.elts) == 2]
    else:
        pairs = []
    for key, value in pairs:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value, value.value if isinstance(value, ast.Constant) else None


# ---- the public names of transformers

_ALL = re.compile(rb"^__all__\s*(?::[^=\n]+)?\+?=\s*(\[[^\]]*\]|\([^)]*\))", re.MULTILINE)
_REQUIRES = re.compile(rb"^@requires\b[^\n]*\n(?:[ \t)@#][^\n]*\n)*(?:class|def) (\w+)", re.MULTILINE)
_STRING = re.compile(rb"[\"'](\w+)[\"']")
_WORD = re.compile(r"""["']([A-Za-z_]\w*)["']""")
TAIL = 8192


def model_names(root: str) -> dict[str, list[str]]:
    """Module (`models.llama.modeling_llama`) to the names it exports, from the `__all__` at the end of each file.

    transformers from 4.48 on makes its public names so; before, this finds nothing and the names are import statements.
    """
    found: dict[str, list[str]] = {}
    base = os.path.join(root, "models")
    try:
        families = sorted(os.listdir(base))
    except OSError:
        return found
    for family in families:
        try:
            files = sorted(os.listdir(os.path.join(base, family)))
        except OSError:
            continue
        for file in files:
            if not file.endswith(".py") or file == "__init__.py" or file.startswith(("convert_", "modular_")):
                continue
            names = _exported(os.path.join(base, family, file))
            if names:
                found[f"models.{family}.{file[:-3]}"] = names
    return found


def _exported(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            tail = b"\n" + file.read()
            if size > TAIL and b"\n__all__" not in tail:
                file.seek(0)
                tail = b"\n" + file.read()
    except OSError:
        return []
    # The plain search first: a `^` that is tried on every line of 1,700 files takes a fifth of a second.
    first = tail.find(b"\n__all__")
    names = {n for m in _ALL.finditer(tail, first) for n in _STRING.findall(m[1])} if first >= 0 else set()
    first = tail.find(b"\n@requires")
    if first >= 0:
        names.update(_REQUIRES.findall(tail, first))
    return sorted(n.decode() for n in names)


def public_names(sources: Sources, models: Mapping[str, list[str]]) -> list[str]:
    """Every public name of transformers: what its `__init__` imports or lists, and what the models export."""
    module = sources.module("transformers")
    if module is None:
        return []
    names = {i.alias for i in sources.imports(module) if i.name not in ("*", "")}
    # Every quoted word of the file: `_import_structure` is filled in a dozen ways. One too many only costs a finding.
    names.update(_WORD.findall(module.text))
    names.update(n for exported in models.values() for n in exported)
    return sorted(n for n in names if not n.startswith("_"))
