"""QD31: the files of a local model folder: there, whole, and what their names say."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.common import at_least
from qlora_checks.model_parts import (
    by_transformers,
    config_of,
    listed,
    model_of,
    model_type,
    other_format,
    weight_files,
)
from qlora_checks.tables import rows
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, ModelFacts, StoredFile, Unknown, known
from qlora_doctor.families import BY_TYPE, family_of, known_model
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, LoadKwarg, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest

_SMALL = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "tokenizer.model")
_AGAIN = "download the files that are named here again, and compare their sizes with those on the model's page"


@check("QD310", needs=["model"], since="0.1", requires=["QD215"])
def model_folder_without_a_configuration(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A folder is loaded as a model, and holds no config.json that can be read.

    `from_pretrained` reads config.json first: without one it raises `OSError: ... does not appear to have a file named
    config.json`, and one that is not JSON is an `OSError` too. Often the folder is the parent of the right one, the
    checkpoint of other software (GGUF, Meta's consolidated files, the parts of a DeepSpeed run), or a download that was
    broken off.

    Silent for a folder with adapter_config.json (QD311 judges it), and where the load takes a subfolder or a GGUF file.

    Fix: name the folder that save_pretrained or the download wrote.
    """
    model = model_of(facts, request)
    if model.config is not None or model.adapter_config is not None:
        return
    config = model.file("config.json")
    kind = other_format(model)
    what = f"it holds {kind}" if kind else "it is no model folder, or a download that was broken off"
    if config is not None:
        what = f"its config.json is {_said(config)}"
    yield Finding(
        "{model} has no config.json that can be read: {what}. Name the folder that save_pretrained or the download "
        "wrote, or download config.json again",
        {"model": model.name, "what": what, "files": [f.name for f in model.files][:8]},
        severity="error",
        site=request.site,
        fixes=(Advice("name the folder of a transformers model"),),
    )


@check("QD311", needs=["model"], wants=["packages"], since="0.1")
def adapter_in_place_of_a_model(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A folder that holds an adapter only is loaded as a model.

    With PEFT installed, transformers reads adapter_config.json, loads the base model that it names, and puts the adapter
    on it; the name of the base is then a path or a Hub id that must still be right. Without PEFT it raises OSError for the
    missing config.json.

    An error where PEFT is not installed or the adapter names no base; else information. PEFT's own classes, which ask for
    an adapter, are left alone.

    Fix: load the base model, then `PeftModel.from_pretrained(model, DIR)`.
    """
    model = model_of(facts, request)
    adapter = model.adapter_config
    if adapter is None or model.config is not None or "Peft" in request.class_name or not request.class_name:
        return
    base = adapter.get("base_model_name_or_path")
    named = isinstance(base, str) and bool(base)
    packages = facts.state("packages")
    absent = not isinstance(packages, Unknown) and packages.find("peft") is None
    yield Finding(
        "{model} holds an adapter, not a model ({problem}): load {base}, then PeftModel.from_pretrained(model, {model!r})"
        if absent or not named
        else "{model} holds an adapter: transformers will load {base} and put it on; to train on, load the base model and "
        "PeftModel.from_pretrained(model, {model!r}, is_trainable=True)",
        {
            "model": model.name,
            "base": base if named else "its base model",
            "problem": "peft is not installed" if absent else "it does not name its base model",
        },
        severity="error" if absent or not named else "info",
        site=request.site,
        fixes=(PipRequirement("peft"),) if absent and named else (Advice("load the base model, then the adapter"),),
    )


@check("QD312", needs=["model", "packages", "installed"], since="0.1", requires=["QD310"])
def model_type_unknown_to_transformers(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The model_type in config.json is none that the installed transformers has.

    The known types are read from the installed transformers' own source. The load raises `ValueError: The checkpoint you
    are trying to load has model type ... but Transformers does not recognize this architecture`; without a model_type, `Unrecognized
    model`. Where the doctor knows the version that brought the type, it names it. Silent where config.json brings code of
    its own (QD313 judges that), and for layouts of other projects that QD321 names.

    Fix: a newer transformers.

    Source: AutoConfig in transformers 4.44 and 5.23; the table of versions is `architecture` in matrix.toml.
    """
    model = model_of(facts, request)
    types = facts.installed.model_types
    if model.config is None or not by_transformers(request) or "auto_map" in model.config:
        return
    if "mm_vision_tower" in model.config:
        return
    found = model_type(model)
    if not found:
        if request.class_name.startswith("Auto"):
            yield Finding(
                "The config.json of {model} names no model_type, so no Auto class can tell what it is: download it again",
                {"model": model.name},
                severity="error",
                site=request.site,
                fixes=(Advice("download config.json again"),),
            )
        return
    version = facts.version("transformers")
    if version is None:
        return
    if not types:
        raise UnknownFact("installed.model_types", "the architectures of transformers could not be read")
    if found in types:
        return
    floor = _first_with(found)
    fixes: tuple[Fix, ...] = (Advice("use the newest transformers, or the model's own code if its page asks for it"),)
    if floor and not at_least(version, floor):
        fixes = (PipRequirement(f"transformers>={floor}"),)
    yield Finding(
        "transformers {transformers} does not know the architecture {type} of {model}: {way}",
        {
            "transformers": str(version),
            "type": found,
            "model": model.name,
            "way": f"it came with {floor}; update transformers" if floor else "update it, or see the model's page",
        },
        severity="error",
        site=request.site,
        fixes=fixes,
    )


def _first_with(model_type: str) -> str:
    """The first transformers that has an architecture; "" where that is not known."""
    for row in rows("matrix.toml", "architecture"):
        if row["model_type"] == model_type:
            return str(row["from"])
    return BY_TYPE[model_type].minimum if model_type in BY_TYPE else ""


@check("QD313", needs=["model"], wants=["installed"], since="0.1", requires=["QD310"])
def model_folder_with_code_of_its_own(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """config.json has an auto_map: the model comes with Python files of its own.

    With `trust_remote_code=True` those files run in your process when the model is loaded. Without it, transformers uses
    its own class where it has one for this model_type, and raises ValueError where it has none.

    An error where the code is needed and not trusted, or is trusted and its file is not in the folder. Information, with the
    files that would run, where it is trusted. Silent where it is not trusted and transformers has the architecture.

    Fix: none is made for you; read the files, or take a model that transformers has itself.

    Source: resolve_trust_remote_code in transformers 4.44 and 5.23.
    """
    model = model_of(facts, request)
    auto_map = config_of(model).get("auto_map")
    if not isinstance(auto_map, dict) or not auto_map or not by_transformers(request):
        return
    if model.origin == "hub" and (family_of(model.name) or known_model(model.name)):
        return  # QD106 and QD107 know it by its name
    targets = sorted({t for t in auto_map.values() if isinstance(t, str)})
    here = sorted({f"{t.partition('.')[0]}.py" for t in targets if "--" not in t})
    remote = sorted({t.partition("--")[0] for t in targets if "--" in t})
    trusted = request.call.seen("trust_remote_code") is True
    installed = facts.state("installed")
    native: bool | None = None
    if not isinstance(installed, Unknown) and installed.model_types:
        native = model_type(model) in installed.model_types
    evidence = {"model": model.name, "files": listed([*here, *remote], 4), "type": model_type(model)}
    lost = [n for n in here if not model.has(n)]
    if trusted and lost:
        yield Finding(
            "{model} needs its own code ({files}), and {lost} is not in the folder: download it with the model",
            {**evidence, "lost": listed(lost)},
            severity="warning" if native else "error",
            site=request.site,
            fixes=(Advice("download the Python files of the model too"),),
        )
        return
    if trusted:
        drop = (LoadKwarg("trust_remote_code", drop=True, applicability="unsafe", site=request.site),)
        yield Finding(
            "{model} brings code of its own ({files}), and trust_remote_code=True runs it here; transformers has {type} itself, "
            "so drop the argument"
            if native
            else "{model} brings code of its own ({files}), and trust_remote_code=True runs it here: read it first",
            evidence,
            severity="info",
            site=request.site,
            fixes=drop if native else (Advice("read the files before you run them"),),
        )
        return
    if native:
        return
    if "trust_remote_code" not in request.call.arguments:
        request.call.has("trust_remote_code")  # raises where the arguments cannot all be seen
    known(native, "installed.model_types", "the architectures of transformers could not be read")
    yield Finding(
        "transformers has no class for {type}, and the code of {model} itself ({files}) is not trusted, so the load is a "
        "ValueError: take a model that transformers has, or read that code and pass trust_remote_code=True",
        evidence,
        severity="error",
        site=request.site,
        fixes=(Advice("read the files; then pass trust_remote_code=True, or take another model"),),
    )


@check("QD314", needs=["model"], since="0.1", requires=["QD310", "QD311"])
def incomplete_model_folder(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A model folder without its weights, without some of the files that its index names, or without the index.

    `from_pretrained` raises OSError, for a missing shard only after it has read the configuration and the code. A path in the
    index that leaves the folder is treated as a damaged index: it is never followed.

    Fix: download what is missing; a download that was broken off goes on where it stopped.
    """
    model = model_of(facts, request)
    if model.config is None:
        return
    files = weight_files(model)
    broken_index = model.file(model.index) if model.index else None
    if broken_index is not None and broken_index.fault:
        if broken_index.fault in ("unreadable", "outside"):
            raise UnknownFact(broken_index.name, broken_index.detail)
        yield _lacks(request, model, f"its index {broken_index.name} is {_said(broken_index)}", [broken_index.name])
        return
    outside = [f.name for f in files if f.fault == "outside" and "index" in f.detail]
    if outside:
        yield _lacks(request, model, f"its index names {listed(outside)}, a path that leaves the folder", outside)
        return
    missing = [f.name for f in files if f.fault == "missing"]
    if missing:
        shards = len(set(model.weight_map.values()))
        yield _lacks(
            request, model, f"{len(missing)} of its {shards} weight files are not there: {listed(missing)}", missing
        )
        return
    if files or any(i.fault in ("outside", "unreadable") and i.name.endswith(".json") for i in model.files):
        return
    lone = [f.name for f in model.files if "-of-" in f.name and f.name.endswith((".safetensors", ".bin"))]
    pointer = [f.name for f in model.files if f.name.endswith((".safetensors", ".bin")) and f.name not in lone]
    kind = other_format(model)
    if lone:
        what = f"it holds {listed(lone)} without the index (model.safetensors.index.json) that says what is in them"
    elif kind:
        what = f"it holds no weights that transformers loads, but {kind}"
    elif pointer:
        what = f"its weights have names that transformers does not look for ({listed(pointer)})"
    else:
        what = "it holds no weights"
    yield _lacks(request, model, what, lone or pointer)


def _lacks(request: LoadRequest, model: ModelFacts, what: str, names: list[str]) -> Finding:
    return Finding(
        "{model} cannot be loaded: {what}. Take another repository or revision"
        if model.origin == "hub"
        else "{model} cannot be loaded: {what}. Download the folder again; what is there already is kept",
        {"model": model.name, "what": what, "files": names[:20]},
        severity="error",
        site=request.site,
        fixes=(Advice(_AGAIN),),
    )


def _said(file: StoredFile) -> str:
    return file.detail or file.fault


def _faulty(model: ModelFacts, *faults: str) -> list[StoredFile]:
    """The files that this load reads and that have one of these faults."""
    read = {f.name for f in weight_files(model)}
    return [f for f in model.files if f.fault in faults and (f.name in read or f.name in _SMALL)]


@check("QD315", needs=["model"], since="0.1", requires=["QD310"])
def lfs_pointer_in_place_of_a_file(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A weight or tokenizer file of the folder is the stand-in of Git LFS: 130 bytes of text that name the real file.

    That is what `git clone` leaves where git-lfs is not installed. The load ends in `SafetensorError: HeaderTooLarge`,
    `UnpicklingError: invalid load key, 'v'`, or an error of the tokenizer, none of which says what is wrong.

    Fix: `git lfs pull` in the folder, or download it with huggingface_hub.
    """
    model = model_of(facts, request)
    wrong = [f.name for f in _faulty(model, "lfs pointer")]
    if wrong:
        yield Finding(
            "{model}: {files} are stand-ins of Git LFS, not the files. Run `git lfs pull` in the folder (after `git lfs install`), "
            "or download the model again",
            {"model": model.name, "files": listed(wrong), "count": len(wrong)},
            severity="error",
            site=request.site,
            fixes=(Advice("fetch the real files", "git lfs pull"),),
        )


@check("QD316", needs=["model"], since="0.1", requires=["QD207", "QD215", "QD310"])
def web_page_in_place_of_a_file(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A file of the folder is a web page: a login form, an error page or a captive portal, saved under the file's name.

    It happens with `wget` of a `/blob/` address (the page about the file) in place of `/resolve/`, behind a portal, and
    with gated models without a token.

    Fix: download the file again, from its `/resolve/` address or with huggingface_hub.
    """
    model = model_of(facts, request)
    wrong = [f.name for f in _faulty(model, "web page")]
    if wrong:
        yield Finding(
            "{model}: {files} hold a web page, not the file. Download again (with wget: from /resolve/main/, not "
            "/blob/main/; for a gated model with a token)",
            {"model": model.name, "files": listed(wrong)},
            severity="error",
            site=request.site,
            fixes=(Advice(_AGAIN),),
        )


@check("QD317", needs=["model"], since="0.1", requires=["QD310"])
def truncated_weights(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A weight file is shorter or longer than its own header says, or is not what its name says.

    A safetensors file states the place of each tensor in its header, so its exact length is known from its first bytes. A
    download that was cut leaves it short: `SafetensorError: MetadataIncompleteBuffer`, or `incomplete metadata, file not fully
    covered`. A .bin file is a zip file; one without its last record was cut. Neither is opened further.

    Fix: delete the file and download it again.

    Source: the safetensors format; safetensors 0.7 refuses a file that is longer, too.
    """
    model = model_of(facts, request)
    for file in _faulty(model, "truncated", "too long", "damaged"):
        if not file.name.endswith((".safetensors", ".bin")):
            continue
        yield Finding(
            "{model}: {file} is {what} ({detail}). Delete it and download it again",
            {
                "model": model.name,
                "file": file.name,
                "what": {"truncated": "cut short", "too long": "longer than it should be"}.get(file.fault, "damaged"),
                "detail": _said(file),
            },
            severity="error",
            site=request.site,
            fixes=(Advice(f"delete {file.name} and download it again"),),
        )
    unread = [f for f in weight_files(model) if f.fault in ("unreadable", "outside")]
    if unread:
        raise UnknownFact(unread[0].name, unread[0].detail)


@check("QD318", needs=["model"], since="0.1", requires=["QD310", "QD314", "QD315", "QD316", "QD317"])
def index_of_other_weights(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The index names tensors that the weight files do not hold.

    transformers trusts the index for which files to open and takes what is in them; what is not there is initialised at
    random, with a warning among many. The usual cause is a folder with files of two downloads or two checkpoints.

    An error where a tensor is missing from its file. A warning where the files hold under nine tenths of the bytes that the
    index states.

    Fix: download the index and the files of one revision.
    """
    model = model_of(facts, request)
    if not model.weight_map or not model.tensors:
        return
    lost = sorted(n for n, file in model.weight_map.items() if file.endswith(".safetensors") and n not in model.tensors)
    if not model.complete and lost:
        raise UnknownFact("model.tensors", "not every header could be read")
    moved = sorted(n for n, file in model.weight_map.items() if n in model.tensors and model.tensors[n].file != file)
    held = sum(f.size for f in weight_files(model))
    if lost or moved:
        yield Finding(
            "{model}: its index and its weight files do not belong together ({names}): what is missing would be random. "
            "Download the index and all weight files anew",
            {"model": model.name, "names": listed([*lost, *moved]), "count": len(lost) + len(moved)},
            severity="error" if lost else "warning",
            site=request.site,
            fixes=(Advice(_AGAIN),),
        )
    elif model.index_size and held < 0.9 * model.index_size:
        yield Finding(
            "{model}: its weight files hold {held} bytes, and its index says {stated}: compare them with the model's page",
            {"model": model.name, "held": held, "stated": model.index_size},
            severity="warning",
            site=request.site,
            fixes=(Advice(_AGAIN),),
        )


@check("QD319", needs=["model", "packages"], since="0.1", requires=["QD310", "QD314"])
def pickled_weights_with_an_old_torch(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """The folder has its weights as .bin files only, and the installed torch is one that may not read them.

    A .bin file is a pickle. From 4.52 on transformers refuses to read one with torch below 2.6 (CVE-2025-32434: even
    `weights_only=True` could run code there). With torch 2.6 or newer it loads; safetensors files are faster and safe.

    An error with torch below 2.6 and transformers 4.52 or newer, a warning with an older transformers (it reads the file, and
    the file could run code); silent with torch 2.6.

    Fix: torch 2.6, or the safetensors files of the same model.

    Source: check_torch_load_is_safe in transformers; huggingface/transformers#37785.
    """
    model = model_of(facts, request)
    files = [f for f in weight_files(model) if f.fault == ""]
    if not files or not all(f.name.endswith(".bin") for f in files) or not by_transformers(request):
        return
    torch, transformers = facts.version("torch"), facts.version("transformers")
    if torch is None or transformers is None or at_least(torch, "2.6"):
        return
    refused = at_least(transformers, "4.52")
    yield Finding(
        "{model} has only .bin weights, which transformers {transformers} {word} with torch {torch} (CVE-2025-32434). Install "
        "torch 2.6 or newer, or take the model's safetensors files",
        {
            "model": model.name,
            "transformers": str(transformers),
            "torch": str(torch),
            "word": "refuses to read" if refused else "reads although a file could run code",
        },
        severity="error" if refused else "warning",
        site=request.site,
        fixes=(PipRequirement("torch>=2.6"),),
    )


CHECKS: tuple[Check, ...] = (
    model_folder_without_a_configuration,
    adapter_in_place_of_a_model,
    model_type_unknown_to_transformers,
    model_folder_with_code_of_its_own,
    incomplete_model_folder,
    lfs_pointer_in_place_of_a_file,
    web_page_in_place_of_a_file,
    truncated_weights,
    index_of_other_weights,
    pickled_weights_with_an_old_torch,
)
