"""From the calls of a script to what it asks for: one LoadRequest a load and branch, one TrainRequest a trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from qlora_doctor.gather.static import names
from qlora_doctor.gather.static.guards import says_version
from qlora_doctor.gather.static.machine import Record, root_of
from qlora_doctor.gather.static.resolve import (
    Assignment,
    Resolver,
    Undecided,
    arguments_of,
    expand,
    first_that_matters,
    opened,
    signature,
    words,
)
from qlora_doctor.gather.static.sites import Places
from qlora_doctor.gather.static.values import (
    MISSING,
    Atom,
    Choice,
    Entry,
    Instance,
    ListValue,
    Made,
    Snapshot,
    Unknown,
    V,
    each,
)
from qlora_doctor.request import LoadRequest, TrainRequest
from qlora_doctor.source import Call

_LOADS = 8
_TRAINS = 16
_CALLS = 4
Added: TypeAlias = tuple[tuple[Atom, bool], ...]
_FIRST = (
    "quantization_config", "dtype", "torch_dtype", "load_in_4bit", "load_in_8bit", "trust_remote_code",
    "pretrained_model_name_or_path", "**", "device_map",
)  # fmt: skip
_BITS = ("load_in_4bit", "load_in_8bit")
_INNER = ("model", "base_model", "llm", "language_model", "backbone", "net")


@dataclass(slots=True)
class Lineage:
    """What a model went through: the load at its root, and whether it was prepared and given adapters."""

    load: V = None
    attrs: Mapping[str, V] | None = None
    lora: V = None
    prepared: bool | None = False
    peft: bool | None = False


@dataclass(frozen=True, slots=True)
class Context:
    """What turning records into requests needs."""

    places: Places
    order: Mapping[tuple[int, int], int]
    guards: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def resolver(self, assignment: Assignment) -> Resolver:
        return Resolver(self.places.node, self.order, assignment, self.guards)


def calls(context: Context, records: Sequence[Record]) -> list[Call]:
    """Every recorded call, once for each set of arguments that a check could tell apart."""
    found: dict[object, Call] = {}
    for record in records:
        for assignment, added in _ways(record, _CALLS):
            call = _call(context, record, assignment)
            if not call.guarded and any(says_version(atom.yes) for atom, _ in added):
                call = replace(call, guarded="version")
            key = (_position(record), call.receiver, call.origin, signature(call), *map(signature, call.loads))
            found.setdefault(key, call)
    return sorted(found.values(), key=lambda c: c.order)


def _ways(record: Record, limit: int) -> list[tuple[Assignment, Added]]:
    values = _by_weight(record.arguments)
    return expand(record.facts, record.path, lambda assignment: first_that_matters(values, assignment), limit)


def _call(context: Context, record: Record, assignment: Assignment) -> Call:
    resolver = context.resolver(assignment)
    call = resolver.call(
        record.function,
        record.arguments,
        record.node,
        receiver=record.receiver,
        result=record.result,
        origin=origin(record.receiver_value, assignment),
    )
    if names.last(record.function) not in names.CASTS:
        return call
    return replace(call, loads=tuple(_loads_behind(context, record, assignment) or ()))


def _loads_behind(context: Context, record: Record, assignment: Assignment) -> list[Call] | None:
    """The loads that a receiver may be, under each way that is open here; None where it may be something else."""

    def load_of(one: Assignment) -> V:
        leaf, attrs = opened(record.receiver_value, one)
        while isinstance(leaf, Made) and names.last(leaf.function) in names.PREPARERS:
            leaf, attrs = opened(leaf.arguments.get("model"), one)
        if not isinstance(leaf, Made) or not names.is_load(leaf.function):
            return None
        return Snapshot(leaf, dict(attrs)) if attrs else leaf

    def open_atom(one: Assignment) -> Atom | None:
        try:
            found = load_of(one)
            return None if found is None else first_that_matters(_about_load(found, one), one)
        except Undecided as undecided:
            return undecided.atom

    found: dict[object, Call] = {}
    for one, _ in expand({**record.facts, **assignment}, record.path, open_atom, _LOADS):
        try:
            made = load_of(one)
        except Undecided:
            return None
        if made is None:
            return None
        call = context.resolver(one).made(made)
        found.setdefault(signature(call), call)
    return list(found.values())


def origin(receiver: V, assignment: Assignment) -> str:
    """The import path of the call that made a receiver."""
    for leaf in each(receiver):
        try:
            leaf, _ = opened(leaf, assignment)
        except Undecided:
            continue
        root = root_of(leaf)
        if isinstance(root, Made):
            return root.function
    return ""


def _position(record: Record) -> tuple[int, int]:
    return (record.node.lineno, record.node.col_offset)  # type: ignore[attr-defined]


def _by_weight(arguments: Mapping[str, V]) -> list[V]:
    first = [arguments[n] for n in _FIRST if n in arguments]
    return first + [v for n, v in arguments.items() if n not in _FIRST and n not in names.DULL and n[:2] != "**"]


def loads(context: Context, records: Sequence[Record]) -> list[LoadRequest]:
    """The loads of models, one for each branch that gives other arguments."""
    found: dict[object, list[tuple[Call, Added]]] = {}
    for record in records:
        if not _is_load(record):
            continue
        for assignment, added in _ways(record, _LOADS):
            call = _call(context, record, assignment)
            found.setdefault((_position(record), signature(call)), []).append((call, added))
    several: dict[object, int] = {}
    for key in found:
        several[key[0]] = several.get(key[0], 0) + 1  # type: ignore[index]
    requests = []
    for key, same in found.items():
        when = words(_common([added for _, added in same])) if several[key[0]] > 1 else ""  # type: ignore[index]
        requests.append(LoadRequest(same[0][0], when=when))
    return sorted(requests, key=lambda r: r.call.order)


def _common(all_added: Sequence[tuple[tuple[Atom, bool], ...]]) -> list[tuple[Atom, bool]]:
    return [pair for pair in all_added[0] if all(pair in added for added in all_added[1:])]


def _is_load(record: Record) -> bool:
    if names.is_load(record.function):
        return True
    asks = {"quantization_config", "load_in_4bit", "load_in_8bit", "torch_dtype", "dtype"} & set(record.arguments)
    if record.function == ".from_pretrained":
        return bool(asks)
    if names.last(record.function) != "from_pretrained" or not names.in_stack(record.function):
        return False
    owner = names.owner(record.function)
    return bool(asks) and names.top(record.function) not in names.STACK and owner[:1].islower()


def trains(context: Context, records: Sequence[Record]) -> list[TrainRequest]:
    """The trainers; where there is none, the script's own training loop."""
    found: list[TrainRequest] = []
    for record in records:
        if names.is_trainer(record.function) and record.made is not None and not record.receiver:
            found += _of_trainer(context, record)
    if not found:
        found = _loops(context, records)
    return found


def _of_trainer(context: Context, record: Record) -> list[TrainRequest]:
    def open_atom(assignment: Assignment) -> Atom | None:
        try:
            line = lineage(record.arguments.get("model"), assignment)
            settings = _configuration(record.arguments, ("args", "config", "training_args"), assignment)
            lora = _configuration(record.arguments, ("peft_config",), assignment)
            values = [] if line.load is None else _about_load(line.load, assignment)
        except Undecided as undecided:
            return undecided.atom
        for part in (settings, lora, line.lora):
            if part is not None:
                values += _by_weight(arguments_of(part))
        plain = {k: v for k, v in record.arguments.items() if k not in ("model", "args", "peft_config")}
        return first_that_matters([*values, *_by_weight(plain)], assignment)

    ways = expand(record.facts, record.path, open_atom, _TRAINS)
    found: dict[object, TrainRequest] = {}
    for assignment, added in ways:
        request = _train(context, record, assignment, words(added) if len(ways) > 1 else "")
        found.setdefault(_train_signature(request), request)
    if len(found) == 1:
        only = next(iter(found.values()))
        return [_without_when(only)]
    return list(found.values())


def _about_load(load: V, assignment: Assignment) -> list[V]:
    """What matters of a load for the training: its bits and its dtype. Raises Undecided."""
    given = arguments_of(load)
    values = [given[n] for n in (*_BITS, "dtype", "torch_dtype", "pretrained_model_name_or_path", "**") if n in given]
    if "quantization_config" in given:
        leaf, attrs = opened(given["quantization_config"], assignment)
        if isinstance(leaf, Made):
            own = arguments_of(Snapshot(leaf, dict(attrs)))
            values += [own[n] for n in _BITS if n in own]
    return values


def _train_signature(request: TrainRequest) -> object:
    parts = (request.trainer, request.settings, request.lora, request.load.call if request.load else None)
    return (*(None if p is None else signature(p) for p in parts), request.prepared, request.peft)


def _without_when(request: TrainRequest) -> TrainRequest:
    load = request.load
    if load is not None and load.when:
        load = replace(load, when="")
    return replace(request, when="", load=load)


def _train(context: Context, record: Record, assignment: Assignment, when: str) -> TrainRequest:
    resolver = context.resolver(assignment)
    try:
        line = lineage(record.arguments.get("model"), assignment)
    except Undecided:
        line = Lineage(prepared=None, peft=None)
    settings = _or_none(record.arguments, ("args", "config", "training_args"), assignment)
    lora = _or_none(record.arguments, ("peft_config",), assignment)
    peft = line.peft
    if lora is not None:
        peft = True
    elif not _is_none(record.arguments.get("peft_config"), assignment):
        peft = line.peft or None
    lora = lora or line.lora
    made = record.made
    return TrainRequest(
        trainer=_call(context, record, assignment),
        settings=None if settings is None else resolver.made(settings),
        lora=None if lora is None else resolver.made(lora),
        load=None if line.load is None else LoadRequest(_made_call(resolver, line), when=when),
        prepared=line.prepared,
        peft=peft,
        subclass=made.cls.name if made is not None and made.cls is not None else "",
        when=when,
    )


def _made_call(resolver: Resolver, line: Lineage) -> Call:
    call = resolver.made(line.load)
    return call


def _is_none(value: V, assignment: Assignment) -> bool:
    if value is None or value is MISSING:
        return True
    try:
        leaf, _ = opened(value, assignment)
    except Undecided:
        return False
    return leaf is None or leaf is MISSING


def _or_none(arguments: Mapping[str, V], keys: Iterable[str], assignment: Assignment) -> V:
    try:
        return _configuration(arguments, keys, assignment)
    except Undecided:
        return None


def _configuration(arguments: Mapping[str, V], keys: Iterable[str], assignment: Assignment) -> V:
    """The configuration object among the arguments. Raises Undecided."""
    for key in keys:
        if key in arguments:
            leaf, attrs = opened(arguments[key], assignment)
            if isinstance(leaf, Made):
                return Snapshot(leaf, dict(attrs))
    return None


def lineage(value: V, assignment: Assignment) -> Lineage:
    """Follows a model back to its load. Raises Undecided."""
    line = Lineage()
    marks: list[V] = []
    found = _walk_back(value, line, marks, assignment)
    for mark in marks:
        if line.prepared is True:
            break
        leaf, _ = opened(mark, assignment)
        line.prepared = True if leaf is True else line.prepared
    if not found:
        line.prepared = line.prepared or None
        line.peft = line.peft or None
    return line


def _walk_back(value: V, line: Lineage, marks: list[V], assignment: Assignment) -> bool:
    """Notes on the way to the load what was done to a model; whether the load was reached."""
    for _ in range(20):
        leaf, attrs = opened(MISSING if value is None else value, assignment)
        if isinstance(leaf, Made):
            _marks(line, leaf, attrs, marks, assignment)
            more = _step(line, leaf, attrs)
            if more is MISSING:
                return True
            value = more
            continue
        if isinstance(leaf, Unknown) and leaf.parent is not None and leaf.step in (".", "module", "[]"):
            value = _inner(leaf)
            if value is not None:
                continue
        if isinstance(leaf, Instance):
            value = next((leaf.attrs[n] for n in _INNER if n in leaf.attrs), None)
            if value is not None:
                continue
        break
    return False


def _inner(leaf: Unknown) -> V:
    parent = leaf.parent
    if isinstance(parent, Made) and names.is_trainer(parent.function):
        return parent.arguments.get("model")
    return parent


def _marks(line: Lineage, made: Made, attrs: Mapping[str, V], marks: list[V], assignment: Assignment) -> None:
    current = {**made.attrs, **attrs}
    if "#prepared" in current:
        marks.append(current["#prepared"])
    if _mark(current, "#peft", assignment):
        line.peft = True
    if "#lora" in current and line.lora is None:
        leaf, _ = opened(current["#lora"], assignment)
        line.lora = leaf if isinstance(leaf, Made) else None
    if _mark(current, "#opaque", assignment) and line.prepared is False:
        line.prepared = None


def _mark(attrs: Mapping[str, V], name: str, assignment: Assignment) -> bool:
    if name not in attrs:
        return False
    leaf, _ = opened(attrs[name], assignment)
    return leaf is True


def _step(line: Lineage, made: Made, attrs: Mapping[str, V]) -> V:
    """One step back; MISSING at the end of the way."""
    name = names.last(made.function)
    own = made.arguments
    if name in names.PREPARERS:
        line.prepared = True
        return own.get("model")
    if name == "get_peft_model":
        line.peft = True
        if names.owner(made.function).startswith("Fast"):
            line.prepared = True
            line.lora = line.lora or made
        else:
            line.lora = line.lora or _plain_made(own.get("peft_config"))
        return own.get("model")
    if names.owner(made.function).startswith("PeftM") or name.startswith("PeftModel"):
        line.peft = True
        return own.get("model", own.get("#0"))
    if names.is_load(made.function):
        line.load = Snapshot(made, dict(attrs))
        if names.owner(made.function).startswith("AutoPeft"):
            line.peft = True
        return MISSING
    if names.last(made.function) == "from_pretrained" and not names.is_load(made.function):
        return None
    inner = next((own[n] for n in _INNER if n in own), None)
    return inner if names.is_trainer(made.function) else None


def _plain_made(value: V) -> V:
    while isinstance(value, Entry):
        value = value.value
    if isinstance(value, (Snapshot, Made)):
        return value
    if isinstance(value, Choice):
        return next((leaf for leaf in map(_plain_made, each(value)) if leaf is not None), None)
    return None


def _loops(context: Context, records: Sequence[Record]) -> list[TrainRequest]:
    """A loop of the script's own: `loss.backward()` on what a loaded model gave."""
    quantised = [r for r in records if _is_load(r)]
    backward = [r for r in records if names.last(r.function) == "backward"]
    if not backward or not quantised:
        return []
    record = backward[0]
    candidates = _roots(backward, records)
    found: dict[object, TrainRequest] = {}
    for root in candidates[:1]:

        def open_atom(assignment: Assignment, root: V = root) -> Atom | None:
            try:
                line = lineage(root, assignment)
                values = [] if line.load is None else _about_load(line.load, assignment)
            except Undecided as undecided:
                return undecided.atom
            lora = [] if line.lora is None else _by_weight(arguments_of(line.lora))
            return first_that_matters([*values, *lora], assignment)

        ways = expand(record.facts, record.path, open_atom, _TRAINS)
        for assignment, added in ways:
            try:
                line = lineage(root, assignment)
            except Undecided:
                continue
            resolver = context.resolver(assignment)
            when = words(added) if len(ways) > 1 else ""
            request = TrainRequest(
                trainer=Call("loop", site=context.places.node(record.node), order=_order(context, record)),
                lora=None if line.lora is None else resolver.made(line.lora),
                load=None if line.load is None else LoadRequest(resolver.made(line.load), when=when),
                prepared=line.prepared,
                peft=line.peft,
                when=when,
            )
            found.setdefault(_train_signature(request), request)
    if not found:
        trainer = Call("loop", site=context.places.node(record.node), order=_order(context, record))
        return [TrainRequest(trainer)]
    return list(found.values())


def _order(context: Context, record: Record) -> int:
    return context.order.get(_position(record), 0)


def _roots(backward: Sequence[Record], records: Sequence[Record]) -> list[V]:
    found: list[V] = []
    for record in backward:
        given = [record.receiver_value, *record.arguments.values()]
        found += [r for r in map(_model_root, given) if r is not None]
    for record in records:
        if record.function.startswith(("torch.optim.", "bitsandbytes.optim.")):
            found += [r for r in map(_model_root, record.arguments.values()) if r is not None]
    made = [r.made for r in records if r.made is not None and _is_model_maker(r.function)]
    return found + list(reversed(made))


def _model_root(value: V) -> V:
    for leaf in each(value):
        while isinstance(leaf, (Entry, Snapshot)):
            leaf = leaf.value if isinstance(leaf, Entry) else leaf.made
        if isinstance(leaf, Choice):
            inner = _model_root(leaf)
            if inner is not None:
                return inner
        if isinstance(leaf, ListValue) and leaf.items:
            return _model_root(leaf.items[0])
        root = root_of(leaf)
        if isinstance(root, Made) and _is_model_maker(root.function):
            return root
    return None


def _is_model_maker(function: str) -> bool:
    name = names.last(function)
    return names.is_load(function) or name in names.PREPARERS or name == "get_peft_model" or "PeftM" in function
