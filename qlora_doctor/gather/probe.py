"""What is on this machine and in this interpreter, as plain data for `Facts.from_wire`.

The standard library alone, no imports of what is being looked at, and syntax that Python 3.6 reads: this file also
runs inside the interpreter that is judged, from its standard input. Nothing here raises: a part that cannot be read
becomes `{"unknown": reason}`.
"""

import os
import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

SCHEMA = 1
PARTS = (
    "interpreter", "host", "packages", "shadows", "torch", "bitsandbytes", "gpus", "driver", "native", "disks", "environ",
)  # fmt: skip

STACK = (
    "torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets", "tokenizers", "safetensors",
    "huggingface_hub", "torchvision", "triton", "flash_attn", "xformers", "deepspeed", "numpy",
)  # fmt: skip
"""Import names of the packages that a QLoRA run stands on."""


class Unreadable(Exception):
    """Why a part cannot be read; becomes its `unknown`."""


def probe(parts: "Sequence[str]", folder: "str | None" = None) -> "dict[str, Any]":
    """The asked parts as data. `folder` is the folder of the script or project that is judged. Never raises."""
    data = {"schema": SCHEMA}  # type: dict[str, Any]
    seen = {}  # type: dict[str, Any]

    def once(name: str, read: "Callable[[], Any]") -> "Any":
        if name not in seen:
            seen[name] = read()
        return seen[name]

    def scanned() -> "list[tuple[str, list[str]]]":
        found = once("folders", lambda: list_folders(search_path()))  # type: list[tuple[str, list[str]]]
        return found

    readers = {
        "interpreter": lambda: interpreter(scanned()),
        "host": host,
        "packages": lambda: packages(scanned(), folder),
        "shadows": lambda: shadows(scanned(), folder),
        "torch": lambda: torch_build(scanned()),
        "bitsandbytes": lambda: bnb_build(scanned()),
        "gpus": lambda: once("nvidia", graphics)[0],
        "driver": lambda: once("nvidia", graphics)[1],
        "native": lambda: native(scanned()),
        "disks": lambda: disks(folder),
        "environ": environ,
    }  # type: dict[str, Callable[[], Any]]
    for part in parts:
        if part in readers:
            try:
                data[part] = readers[part]()
            except Unreadable as error:
                data[part] = {"unknown": str(error)}
            except Exception as error:  # noqa: BLE001 - it becomes the part, with its reason
                data[part] = {"unknown": f"{type(error).__name__}: {redact(str(error))}"}
    return data


def main(argv: "Sequence[str]") -> None:
    """`argv`: the two markers, the folder (or ""), the parts. The markers are printed reversed, so an echo of the
    command line cannot be taken for them. Without arguments: everything, between no markers."""
    import json

    start, end, folder = ([*list(argv), "", "", ""])[:3]
    data = probe(list(argv[3:]) or PARTS, folder or None)
    text = start[::-1] + json.dumps(data) + end[::-1] + "\n"
    sys.stdout.flush()
    raw = text.encode("ascii")
    while raw:
        raw = raw[os.write(1, raw) :]


# ---- files


def read_text(path: str, limit: int = 1 << 20) -> str:
    """The start of a file, or "" where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def read_head(path: str) -> bytes:
    """The header lines of a METADATA file: up to its first blank line, however many they are. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        data = b""
        while len(data) < 16 << 20:
            more = os.read(handle, 16384)
            start = max(len(data) - 3, 0)
            data += more
            blank = _BLANK.search(data, start)
            if blank is not None:
                return data[: blank.start() + 1]
            if not more:
                break
        return data
    finally:
        os.close(handle)


_BLANK = re.compile(rb"\n\r?\n")
_HEADER = re.compile(
    rb"^(name|version|requires-dist|requires-python|provides-dist):[ \t]*([^\n]*(?:\n[ \t]+[^\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)


# ---- what an import finds


def search_path() -> "list[str]":
    """sys.path without the first entry where that stands for how this process was started (`-m`, a script)."""
    path = [p for p in sys.path if type(p) is str and p]
    script = sys.argv[0] if sys.argv else ""
    started = [os.getcwd(), os.path.dirname(os.path.realpath(script)), os.path.dirname(os.path.abspath(script))]
    if not path or path[0] != sys.path[0] or path[0] not in started:
        return path
    return path if path[0] in python_path() or path[0].endswith("-packages") else path[1:]


def python_path() -> "list[str]":
    return [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def list_folders(paths: "Iterable[str]") -> "list[tuple[str, list[str]]]":
    """Each folder once with the names in it, in the order of import; those that Python itself passes over are left out."""
    seen = set()  # type: set[tuple[int, int]]
    folders = []
    for path in paths:
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) in seen and info.st_ino:
                continue
            names = os.listdir(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            raise Unreadable(f"cannot list {path}: {error.strerror}") from None
        seen.add((info.st_dev, info.st_ino))
        folders.append((path, names))
    return folders


def module_at(folder: str, names: "Iterable[str]", module: str) -> str:
    """The package folder or file that `import module` would take in `folder`; "" for none (or a namespace only)."""
    if module in names:
        package = os.path.join(folder, module)
        if os.path.isfile(os.path.join(package, "__init__.py")):
            return package
    if module + ".py" in names:
        return os.path.join(folder, module + ".py")
    for name in names:
        if name.startswith(module + ".") and name.endswith((".so", ".pyd")):
            return os.path.join(folder, name)
    return ""


def find_roots(folders: "Iterable[tuple[str, list[str]]]", modules: "Iterable[str]" = STACK) -> "dict[str, str]":
    """Where each module would be imported from. Editable installs with a finder come last, as Python asks them last."""
    roots = {}  # type: dict[str, str]
    finders = []
    wanted = list(modules)
    for folder, listed in folders:
        names = set(listed)
        for module in wanted:
            if module not in roots:
                path = module_at(folder, names, module)
                if path:
                    roots[module] = path
        finders += [os.path.join(folder, n) for n in listed if n.startswith("__editable__") and n.endswith("finder.py")]
    for finder in finders:
        for module, path in editable_mapping(finder).items():
            if module in wanted and module not in roots:
                roots[module] = path
    return roots


def editable_mapping(finder: str) -> "dict[str, str]":
    """MAPPING in a setuptools editable finder: import name to folder."""
    import ast

    try:
        tree = ast.parse(read_text(finder))
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if value is not None and any(isinstance(t, ast.Name) and t.id == "MAPPING" for t in targets):
                mapping = ast.literal_eval(value)
                return {str(k): str(v) for k, v in mapping.items()}
    except (SyntaxError, ValueError, AttributeError):
        pass
    return {}


# ---- distributions


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


_INFO = (".dist-info", ".egg-info")
_LEFTOVER = re.compile(r"~[A-Za-z0-9][\w.+-]*$")
_STRAY = re.compile(r"=\d[\w.,*+!<>=-]*$")


def packages(folders: "list[tuple[str, list[str]]]", folder: "str | None") -> "dict[str, Any]":
    """The `packages` part. Two copies of one distribution: the one that importlib.metadata takes comes first."""
    distributions = []  # type: list[dict[str, Any]]
    first = {}  # type: dict[str, dict[str, Any]]
    duplicates = {}  # type: dict[str, list[str]]
    broken, leftovers, metadata = [], [], {}  # type: list[str], list[str], dict[str, str]
    infos = {}  # type: dict[str, str]
    for place, names in folders:
        here = []
        links = {canonical(n[:-9]) for n in names if n.endswith(".egg-link")}
        for name in names:
            path = os.path.join(place, name)
            if name[:1] == "~":
                if _LEFTOVER.match(name) and os.path.isdir(path):
                    leftovers.append(path)
            elif name.endswith(_INFO):
                found = distribution(place, name)
                if found is None:
                    broken.append(path)
                    metadata.setdefault(canonical(name.split("-", 1)[0]), path)
                    continue
                key = canonical(found["name"])
                if key in links:
                    continue
                if key in first:
                    duplicates.setdefault(key, []).append(path)
                else:
                    first[key] = found
                    infos[key] = path
                    here.append((key, found))
        here.sort(key=lambda pair: pair[0])
        distributions += [found for _, found in here]
    roots = find_roots(folders)
    installed = set(first) | set(metadata)
    offered = {module for d in distributions for module in d.get("provides", ())}
    return {
        "distributions": distributions,
        "duplicates": {key: sorted(paths) for key, paths in sorted(duplicates.items())},
        "leftovers": sorted(leftovers),
        "without_metadata": sorted(
            path for module, path in roots.items() if not _has_metadata(module, installed) and module not in offered
        ),
        "without_package": sorted(
            first[canonical(m)]["name"]
            for m in STACK
            if m not in roots
            and first.get(canonical(m), {"origin": "editable"}).get("origin") != "editable"
            and _recorded(infos[canonical(m)], m)
        ),
        "broken": sorted(broken),
        "stray": stray_files(folder or os.getcwd()),
        "roots": roots,
        "contested": contested({key: infos[key] for key in first if key.startswith("nvidia-")}),
    }


def contested(infos: "dict[str, str]") -> "dict[str, str]":
    """Libraries that wheels for several CUDA majors put into one place, and whose file lies there, by its size."""
    kinds = {}  # type: dict[str, list[str]]
    for key in infos:
        kinds.setdefault(re.sub(r"-cu\d\d$", "", key), []).append(key)
    claims = {}  # type: dict[str, list[tuple[str, str, str]]]
    for keys in kinds.values():
        for key in keys if len(keys) > 1 else ():
            place = os.path.dirname(infos[key])
            record = read_text(os.path.join(infos[key], "RECORD"), 1 << 22)
            for path, size in re.findall(r"(?m)^(nvidia/[^,\n]+\.so[.\d]*),[^,\n]*,(\d+)\s*$", record):
                claims.setdefault(path, []).append((key, size, place))
    found = {}
    for path, rows in sorted(claims.items()):
        if len({key for key, _, _ in rows}) < 2:
            continue
        owners = set()
        for key, size, place in rows:
            try:
                if str(os.stat(os.path.join(place, path)).st_size) == size:
                    owners.add(key)
            except OSError:
                pass
        found[path] = owners.pop() if len(owners) == 1 else ""
    return found


def _recorded(info: str, module: str) -> bool:
    """Whether the installer wrote down that it put the module there: without a RECORD nobody knows that it is gone."""
    return bool(re.search(rf"(?m)^{re.escape(module)}(/|\.py,)", read_text(os.path.join(info, "RECORD"), 1 << 24)))


def _has_metadata(module: str, installed: "Iterable[str]") -> bool:
    """Forks are published as `triton-windows`, `pytorch-triton`, `bitsandbytes-rocm`: any of them will do."""
    own = canonical(module)
    return any(own == name or name.startswith(own + "-") or name.endswith("-" + own) for name in installed)


def stray_files(folder: str) -> "list[str]":
    """Files such as `=0.44.0`, which a shell makes of an unquoted `pip install x>=0.44.0`."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(os.path.join(folder, n) for n in names if n[:1] == "=" and _STRAY.match(n))


def distribution(place: str, name: str) -> "dict[str, Any] | None":
    """One distribution by its metadata folder (or egg-info file); None where its metadata cannot be read."""
    path = os.path.join(place, name)
    modern = name.endswith(".dist-info")
    try:
        try:
            head = read_head(os.path.join(path, "METADATA" if modern else "PKG-INFO"))
        except (FileNotFoundError, NotADirectoryError):
            if modern:
                return None
            head = read_head(path)
    except OSError:
        return None
    fields = {}  # type: dict[bytes, list[str]]
    for match in _HEADER.finditer(head):
        text = match.group(2).decode("utf-8", "replace")
        fields.setdefault(match.group(1).lower(), []).append(" ".join(text.split()) if "\n" in text else text.strip())
    if not fields.get(b"name", [""])[0] or not fields.get(b"version", [""])[0]:
        return None
    found = {"name": fields[b"name"][0], "version": fields[b"version"][0], "location": place}  # type: dict[str, Any]
    requires = fields.get(b"requires-dist") or ([] if modern else egg_requires(os.path.join(path, "requires.txt")))
    if requires:
        found["requires"] = requires
    if b"requires-python" in fields:
        found["requires_python"] = fields[b"requires-python"][0]
    if modern:
        installer = read_text(os.path.join(path, "INSTALLER"), 64).strip()
        if installer:
            found["installer"] = installer
        direct = read_text(os.path.join(path, "direct_url.json"))
        if direct:
            found["origin"] = origin(direct)
    elif not place.endswith("-packages"):
        found["origin"] = "editable"  # an egg-info in a source folder that a .pth file put on the path
    provides = provided(path, canonical(found["name"])) or fields.get(b"provides-dist", [])
    if provides:
        found["provides"] = provides
    return found


def provided(path: str, key: str) -> "list[str]":
    """Stack modules that a distribution of another name brings (`bitsandbytes-windows` brings `bitsandbytes`)."""
    own = [m for m in STACK if canonical(m) in key and canonical(m) != key]
    if not own:
        return []
    top = read_text(os.path.join(path, "top_level.txt")).split()
    record = read_text(os.path.join(path, "RECORD"))
    return [m for m in own if m in top or re.search(rf"(?m)^{re.escape(m)}/__init__\.py,", record)]


def origin(direct_url: str) -> str:
    import json

    try:
        data = json.loads(direct_url)
        if "vcs_info" in data:
            return "vcs"
        if "dir_info" in data:
            return "editable" if data["dir_info"].get("editable") else "local"
        return "local" if str(data.get("url", "")).startswith("file:") else "url"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "url"


def egg_requires(path: str) -> "list[str]":
    """The sections of an egg-info's requires.txt as Requires-Dist lines."""
    requires, marker = [], ""
    for line in read_text(path).splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            extra, _, condition = line[1:-1].partition(":")
            terms = ([f"({condition})"] if condition else []) + ([f'extra == "{extra}"'] if extra else [])
            marker = " and ".join(terms)
        elif line and not line.startswith("#"):
            requires.append(f"{line}; {marker}" if marker else line)
    return requires


def shadows(folders: "list[tuple[str, list[str]]]", folder: "str | None") -> "list[dict[str, str]]":
    """Stack modules that lie where Python looks before the installed ones.

    `cwd` counts only for what is run from it (`python -m`, a notebook, an interactive session).
    """
    own = os.path.abspath(folder) if folder else ""
    candidates = [(own, "script folder")] if own else []
    if os.getcwd() != own:
        candidates.append((os.getcwd(), "cwd"))
    candidates += [(p, "PYTHONPATH") for p in python_path()]
    before = {os.path.realpath(path) for path, _ in candidates}
    installed = find_roots([f for f in folders if os.path.realpath(f[0]) not in before])
    found = {}  # type: dict[str, dict[str, str]]
    for path, by in candidates:
        try:
            names = set(os.listdir(path))
        except OSError:
            continue
        described = {canonical(n.split("-", 1)[0]) for n in names if n.endswith(_INFO)}
        for module, hidden in installed.items():
            if module in found or canonical(module) in described:
                continue
            here = module_at(path, names, module)
            if here and os.path.realpath(here) != os.path.realpath(hidden):
                found[module] = {"module": module, "path": here, "hidden": hidden, "by": by}
    return [found[module] for module in sorted(found)]


def stack_version(folders: "Iterable[tuple[str, list[str]]]", module: str) -> str:
    """The version in the metadata of one distribution, "" where there is none."""
    for place, names in folders:
        for name in names:
            if name.endswith(_INFO) and canonical(name.split("-", 1)[0]) == canonical(module):
                found = distribution(place, name)
                if found is not None:
                    return str(found["version"])
    return ""


def torch_build(folders: "list[tuple[str, list[str]]]") -> "dict[str, Any] | None":
    """torch/version.py, read and not run; else what the installed version's local part (`+cu121`) tells."""
    root = find_roots(folders, ["torch"]).get("torch", "")
    stated = stack_version(folders, "torch")
    if not root:
        return _torch_by_version(stated) if stated else None
    values = _constants(os.path.join(root, "version.py"))
    version = values.get("__version__")
    if not isinstance(version, str) or "cuda" not in values:
        raise Unreadable("{} does not say how torch was built".format(os.path.join(root, "version.py")))
    build = {"version": version}
    for name in ("cuda", "hip", "xpu"):
        if isinstance(values.get(name), str):
            build[name] = values[name]
    wanted = re.compile(r"(lib)?(torch_cuda|c10_cuda|torch_hip|c10_hip|torch_xpu|cudart|cublasLt)\b")
    try:
        libraries = sorted(n for n in os.listdir(os.path.join(root, "lib")) if wanted.match(n))
    except OSError:
        libraries = []
    return dict(build, libraries=libraries)


def _torch_by_version(version: str) -> "dict[str, Any]":
    local = version.partition("+")[2]
    cuda = re.match(r"cu(\d+)(\d)$", local)
    rocm = re.match(r"rocm([\d.]+)$", local)
    if cuda:
        return {"version": version, "cuda": "{}.{}".format(*cuda.groups()), "source": "METADATA"}
    if rocm:
        return {"version": version, "hip": rocm.group(1), "source": "METADATA"}
    if local == "cpu":
        return {"version": version, "source": "METADATA"}
    raise Unreadable(f"torch {version} has metadata, but its folder is not there")


def _constants(path: str) -> "dict[str, Any]":
    """The top-level `name = constant` lines of a Python file; {} where it cannot be read."""
    import ast

    values = {}
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError, RecursionError):
        return {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                try:
                    values[target.id] = ast.literal_eval(value)
                except ValueError:
                    continue
    return values


def bnb_build(folders: "list[tuple[str, list[str]]]") -> "dict[str, Any] | None":
    """The native libraries that lie in the bitsandbytes folder."""
    root = find_roots(folders, ["bitsandbytes"]).get("bitsandbytes", "")
    version = stack_version(folders, "bitsandbytes")
    if not root:
        if version:
            raise Unreadable(f"bitsandbytes {version} has metadata, but its folder is not there")
        return None
    if not version:
        stated = re.search(r"(?m)^__version__ = ['\"]([^'\"]+)", read_text(os.path.join(root, "__init__.py")))
        if stated is None:
            raise Unreadable(f"{root} does not say its version")
        version = stated.group(1)
    tags = [re.match(r"libbitsandbytes_(\w+)\.(?:so|dll|dylib)$", name) for name in os.listdir(root)]
    return {"version": version, "libraries": sorted(m.group(1) for m in tags if m)}


# ---- the interpreter and the machine


def interpreter(folders: "list[tuple[str, list[str]]]") -> "dict[str, Any]":
    prefix = sys.prefix
    base = getattr(sys, "base_prefix", prefix)
    conda = ""
    if os.path.isdir(os.path.join(prefix, "conda-meta")):
        active = os.environ.get("CONDA_PREFIX", "")
        named = os.environ.get("CONDA_DEFAULT_ENV", "") if os.path.realpath(active) == os.path.realpath(prefix) else ""
        conda = named or ("base" if os.path.isdir(os.path.join(prefix, "condabin")) else os.path.basename(prefix))
    names = {"cpython": "CPython", "pypy": "PyPy", "graalpy": "GraalPy"}
    return {
        "version": ".".join(map(str, sys.version_info[:3])) + _prerelease(),
        "executable": sys.executable or "",
        "prefix": prefix,
        "base_prefix": base,
        "implementation": names.get(sys.implementation.name, sys.implementation.name),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "venv": prefix != base,
        "conda": conda,
        "externally_managed": prefix == base
        and os.path.exists(os.path.join(os.path.dirname(os.__file__), "EXTERNALLY-MANAGED")),
        "user_site": bool(getattr(sys.modules.get("site"), "ENABLE_USER_SITE", False)),
        "pip": bool(find_roots(folders, ["pip"])),
    }


def _prerelease() -> str:
    level = {"alpha": "a", "beta": "b", "candidate": "rc"}.get(sys.version_info[3], "")
    return level + str(sys.version_info[4]) if level else ""


def host(root: str = "/") -> "dict[str, Any]":
    """The machine. `root` is where the file system to read begins (`/`)."""
    if not hasattr(os, "uname"):
        return _windows_host()
    uname = os.uname()
    release = uname[2]
    memory = _meminfo(read_text(root + "proc/meminfo"))
    if not memory and sys.platform == "darwin":
        memory = {"MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    shm = _space(root + "dev/shm")
    low = release.lower()
    named = re.search(r'(?m)^PRETTY_NAME="?([^"\n]+)', read_text(root + "etc/os-release"))
    return {
        "system": uname[0],
        "machine": uname[4],
        "release": release,
        "distribution": named.group(1) if named else "",
        "libc": _libc(root),
        "wsl": 0 if "microsoft" not in low else 2 if "standard" in low or "wsl2" in low else 1,
        "container": _container(root),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_flags": _cpu_flags(root + "proc/cpuinfo"),
        "memory_total": memory.get("MemTotal"),
        "memory_available": memory.get("MemAvailable", memory.get("MemFree")),
        "memory_limit": _memory_limit(root),
        "swap_total": memory.get("SwapTotal"),
        "shm_total": shm[1] if shm else None,
        "shm_free": shm[0] if shm else None,
    }


def _windows_host() -> "dict[str, Any]":
    import platform

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "release": platform.version(),
        "cpu_count": os.cpu_count(),
    }


def _libc(root: str) -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        pass
    try:
        return "musl" if any(n.startswith("ld-musl-") for n in os.listdir(root + "lib")) else ""
    except OSError:
        return ""


def _container(root: str) -> str:
    env = os.environ
    if env.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    if env.get("COLAB_RELEASE_TAG") or env.get("COLAB_GPU"):
        return "colab"
    if env.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if os.path.exists(root + "run/.containerenv"):
        return "podman"
    if os.path.exists(root + ".dockerenv"):
        return "docker"
    groups = read_text(root + "proc/1/cgroup")
    for word, name in (("kubepods", "kubernetes"), ("docker", "docker"), ("libpod", "podman"), ("lxc", "lxc")):
        if word in groups:
            return name
    return env.get("container", "")


_FLAGS = frozenset(
    ("avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512bw", "avx512_bf16", "avx512_vnni", "avx512_fp16",
     "avx_vnni", "amx_bf16", "amx_tile", "amx_int8", "asimd", "asimdhp", "sve", "sve2", "bf16", "i8mm")
)  # fmt: skip


def _cpu_flags(path: str) -> "list[str]":
    """Flags that decide which CPU kernels run. Stops at the first processor: the file is slow to make for 256."""
    try:
        with open(path, "rb") as file:
            for line in file:
                if line.startswith((b"flags", b"Features")):
                    return sorted(_FLAGS.intersection(line.decode("ascii", "replace").split()))
    except OSError:
        pass
    return []


def _meminfo(text: str) -> "dict[str, int]":
    return {m.group(1): int(m.group(2)) * 1024 for m in re.finditer(r"(?m)^(\w+):\s+(\d+) kB", text)}


def _memory_limit(root: str) -> "int | None":
    """The lowest limit of the control groups (both versions) that hold this process, in bytes."""
    limits = []
    for line in read_text(root + "proc/self/cgroup").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base, name = ("memory/", "memory.limit_in_bytes") if controllers else ("", "memory.max")
        for mount in [base] if controllers else [base, "unified/"]:
            parts = [p for p in group.split("/") if p and p != ".."]
            for depth in range(len(parts) + 1):
                path = "/".join([root + "sys/fs/cgroup/" + mount.rstrip("/"), *parts[:depth], name])
                text = read_text(path, 64).strip()
                if text.isdigit() and int(text) < 1 << 60:
                    limits.append(int(text))
    return min(limits) if limits else None


def _space(path: str) -> "tuple[int, int] | None":
    """Free and total bytes of the file system that holds `path`."""
    try:
        if hasattr(os, "statvfs"):
            info = os.statvfs(path)
            return info.f_bavail * info.f_frsize, info.f_blocks * info.f_frsize
        import shutil

        usage = shutil.disk_usage(path)
        return usage.free, usage.total
    except OSError:
        return None


def disks(folder: "str | None") -> "list[dict[str, Any]]":
    """Free space where a run writes. The path is the one that will be used, the numbers are of its nearest parent."""
    env = os.environ
    home = os.path.join(env.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
    hub = os.path.join(env.get("HF_HOME") or home, "hub")
    wanted = [
        ("hf-cache", env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or hub),
        ("tmp", env.get("TMPDIR") or env.get("TEMP") or env.get("TMP") or "/tmp"),
        ("project", folder or os.getcwd()),
    ]
    found = []
    for purpose, path in wanted:
        path = os.path.abspath(os.path.expandvars(os.path.expanduser(path)))
        existing = path
        while not os.path.isdir(existing) and os.path.dirname(existing) != existing:
            existing = os.path.dirname(existing)
        space = _space(existing)
        disk = {"purpose": purpose, "path": redact(path), "writable": os.access(existing, os.W_OK)}  # type: dict[str, Any]
        if space:
            disk.update(free=space[0], total=space[1])
        found.append(disk)
    return found


# ---- the environment variables

_NAMES = frozenset(
    ("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
     "PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONSAFEPATH", "RANK", "WORLD_SIZE",
     "LOCAL_RANK", "LOCAL_WORLD_SIZE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
     "VIRTUAL_ENV", "XDG_CACHE_HOME", "TMPDIR", "TEMP", "TMP", "FORCE_TORCHRUN")
)  # fmt: skip
_PREFIXES = (
    "HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_", "CUDA_", "NVIDIA_", "BNB_", "BITSANDBYTES_", "PYTORCH_",
    "TORCH_", "TORCHINDUCTOR_", "TRITON_", "NCCL_", "ACCELERATE_", "MASTER_", "SSL_CERT_", "TOKENIZERS_", "WANDB_",
    "CONDA_", "SLURM_JOB_", "HIP_", "ROCR_", "ROCM_", "HSA_", "PIP_", "UV_", "DISABLE_", "MODELSCOPE_", "USE_",
    "ZE_", "ONEAPI_", "DS_SKIP_",
)  # fmt: skip
_SECRET = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH)S?(?:_|$)")
_SWITCH = re.compile(r"(?:0|1|true|false|yes|no|on|off|)$", re.IGNORECASE)
REDACTED = "<redacted>"


def environ() -> "dict[str, str]":
    """The environment variables that decide how a run goes; secrets replaced."""
    return {
        name: redact_variable(name, value)
        for name, value in sorted(os.environ.items())
        if name.upper() in _NAMES or name.upper().startswith(_PREFIXES)
    }


def redact_variable(name: str, value: str) -> str:
    """The value as it may be shown. Switches stay: `HF_HUB_DISABLE_IMPLICIT_TOKEN=1` is no secret."""
    upper = name.upper()
    private = _SECRET.search(upper) or (upper.startswith("WANDB_") and upper not in ("WANDB_MODE", "WANDB_DISABLED"))
    if private and not _SWITCH.match(value):
        return REDACTED
    return redact(value).encode("utf-8", "replace").decode("utf-8")


def redact(text: str) -> str:
    """`text` without tokens, and without the user and password of a URL."""
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", REDACTED, text)
    text = re.sub(r"://[^/\s]*@", "://" + REDACTED + "@", text)
    text = re.sub(r"(^|[\s,;])[^\s,;:/@\\]+:[^\s,;/@\\]+@(?=[\w.\[-])", r"\1" + REDACTED + "@", text)
    return re.sub(r"(?i)([?&](?:\w*token|\w*key|\w*secret|password)=)[^&#\s]+", r"\1" + REDACTED, text)


# ---- GPUs


def nvidia_traces() -> bool:
    """Whether anything here hints at an NVIDIA GPU. Cheap: starts and loads nothing."""
    return bool(_nvml_file() or _on_path("nvidia-smi") or _nvidia_nodes())


def _nvidia_nodes() -> bool:
    return any(os.path.exists(p) for p in ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def _on_path(name: str) -> str:
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/lib/wsl/lib"]:
        path = os.path.join(folder, name + (".exe" if os.name == "nt" else ""))
        if folder and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def _nvml_file() -> str:
    """What to hand to the loader for NVML; "" where no such library is known to it."""
    if os.name == "nt":
        path = os.path.join(os.environ.get("SystemRoot", "C:\\Windows"), "System32", "nvml.dll")
        return path if os.path.exists(path) else ""
    name = "libnvidia-ml.so.1"
    folders = [p for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    usual = [f"/usr/lib/{os.uname()[4]}-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/nvidia/lib64"]
    if any(os.path.exists(os.path.join(p, name)) for p in folders + usual[:3]):
        return name
    if name in read_text("/etc/ld.so.cache", 8 << 20):
        return name
    for path in ("/usr/lib/wsl/lib", usual[3], "/usr/local/nvidia/lib", "/run/opengl-driver/lib"):
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    return ""


def graphics() -> "tuple[Any, Any]":
    """The `gpus` and `driver` parts. NVML where it can be loaded, else nvidia-smi, else what the kernel module says."""
    others = named_gpus(other_gpus()) if sys.platform.startswith("linux") else []
    if sys.platform == "darwin" and os.uname()[4] == "arm64":
        others = [{"name": apple_chip() + " GPU", "vendor": "apple"}]
    if not nvidia_traces():
        return others, None
    problems = []
    for read in (nvml, nvidia_smi):
        try:
            found, driver = read()
            return found + others, driver
        except Unreadable as error:
            problems.append(str(error))
    kernel = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", read_text("/proc/driver/nvidia/version"))
    reason = {"unknown": "; ".join(problems)}
    if kernel:
        return reason, {"version": kernel.group(1), "source": "/proc/driver/nvidia/version"}
    return reason, reason


# An integrated GPU of AMD keeps this much of the computer's memory for itself at most; Intel's sits at a fixed address.
_SMALLEST_AMD = 4 << 30
_INTEGRATED_INTEL = "0000:00:02.0"
_GENERAL = {"amd": "AMD GPU", "intel": "Intel GPU"}


def other_gpus(root: str = "/") -> "list[dict[str, Any]]":
    """AMD's and Intel's own cards, by what the kernel's display drivers say; what is built into a processor is left out.

    Where neither the kernel nor the system's list of PCI devices has a name, it is one of _GENERAL.
    """
    found = []  # type: list[dict[str, Any]]
    base = root + "sys/class/drm"
    try:
        cards = sorted((n for n in os.listdir(base) if re.match(r"card\d+$", n)), key=lambda n: int(n[4:]))
    except OSError:
        return found
    kinds = _amd_kinds(root)
    for card in cards:
        device = os.path.join(base, card, "device")
        vendor = read_text(os.path.join(device, "vendor"), 64).strip()
        number = read_text(os.path.join(device, "device"), 64).strip()
        if vendor == "0x1002" and os.path.exists(root + "dev/kfd"):
            gpu = {"name": read_text(os.path.join(device, "product_name")).strip(), "vendor": "amd"}  # type: dict[str, Any]
            gpu["arch"] = kinds.get(_render_node(device), "")
            total = read_text(os.path.join(device, "mem_info_vram_total"), 64).strip()
            used = read_text(os.path.join(device, "mem_info_vram_used"), 64).strip()
            if total.isdigit():
                if int(total) < _SMALLEST_AMD:
                    continue
                gpu["memory_total"] = int(total)
                if used.isdigit():
                    gpu["memory_free"] = int(total) - int(used)
        elif vendor == "0x8086" and os.path.basename(os.path.realpath(device)) != _INTEGRATED_INTEL:
            gpu = {"name": "", "vendor": "intel"}
        else:
            continue
        general = f"{_GENERAL[gpu['vendor']]} {number}".strip()
        found.append(dict(gpu, name=gpu["name"] or _pci_name(root, vendor, number) or general, index=len(found)))
    return found


def _amd_kinds(root: str) -> "dict[str, str]":
    """`gfx942` and the like, by the render node of the card, from what AMD's compute driver says."""
    found = {}  # type: dict[str, str]
    base = root + "sys/class/kfd/kfd/topology/nodes"
    try:
        nodes = os.listdir(base)
    except OSError:
        return found
    for node in nodes:
        text = read_text(os.path.join(base, node, "properties"))
        version = re.search(r"(?m)^gfx_target_version (\d+)$", text)
        minor = re.search(r"(?m)^drm_render_minor (\d+)$", text)
        if version and minor and int(version.group(1)):
            value = int(version.group(1))
            found["renderD" + minor.group(1)] = f"gfx{value // 10000}{value // 100 % 100:x}{value % 100:x}"
    return found


def _render_node(device: str) -> str:
    try:
        return next((n for n in os.listdir(os.path.join(device, "drm")) if n.startswith("renderD")), "")
    except OSError:
        return ""


def _pci_name(root: str, vendor: str, number: str) -> str:
    """What the system's list of PCI devices calls a card (`Arc B580`), "" where it has none."""
    for path in ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"):
        text = read_text(root + path, 8 << 20)
        section = re.search(rf"(?m)^{vendor[2:]}  .*\n((?:[\t#].*\n)*)", text)
        row = re.search(rf"(?m)^\t{number[2:]}  (.+)$", section.group(1)) if section else None
        if row:
            sold = re.search(r"\[(.+)\]", row.group(1))
            return {"0x1002": "AMD ", "0x8086": "Intel "}[vendor] + (sold or row).group(1)
    return ""


def named_gpus(gpus: "list[dict[str, Any]]", limit: float = 5.0) -> "list[dict[str, Any]]":
    """The cards with the names (and memory) that their makers' tools tell, which are asked for what is not known yet."""
    from time import monotonic

    end = monotonic() + limit

    def unnamed(gpu: "dict[str, Any]") -> bool:
        return not gpu["name"] or gpu["name"].startswith(_GENERAL[gpu["vendor"]])

    amd = [g for g in gpus if g["vendor"] == "amd"]
    intel = [g for g in gpus if g["vendor"] == "intel"]
    hidden = not amd and os.path.exists("/dev/kfd") and not os.path.isdir("/sys/class/kfd/kfd/topology/nodes")
    tools = [("amd", amd_smi), ("amd", rocm_smi)] if hidden or any(unnamed(g) for g in amd) else []
    if any(unnamed(g) or "memory_total" not in g for g in intel):
        tools.append(("intel", xpu_smi))
    answered = set()  # type: set[str]
    for vendor, tool in tools:
        mine = [g for g in gpus if g["vendor"] == vendor]
        try:
            told = tool(end - monotonic()) if vendor not in answered else []
        except (Unreadable, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            continue  # the next tool may know; the name stays general otherwise
        if told:
            answered.add(vendor)
        if not mine:
            gpus = gpus + [dict(g, vendor=vendor) for g in told]
        elif len(told) == len(mine):
            for gpu, better in zip(mine, told):  # noqa: B905 - 3.8 has no strict=
                gpu.update(
                    {k: v for k, v in better.items() if v and (not gpu.get(k) or (k == "name" and unnamed(gpu)))}
                )
    return [dict(g, name=g["name"] or _GENERAL[g["vendor"]], index=n) for n, g in enumerate(gpus)]


def _json_of(command: "list[str]", limit: float) -> "Any":
    """What a tool prints as JSON, behind the warnings that it may print first. Raises Unreadable, ValueError."""
    import json

    program = _on_path(command[0])
    if not program:
        raise Unreadable(f"{command[0]} is not on PATH")
    code, out = _run([program, *command[1:]], limit)
    start = re.search(r"(?m)^\s*[\[{]", out)
    if code != 0 or start is None:
        raise Unreadable(f"{command[0]} failed (exit status {code})")
    return json.JSONDecoder().raw_decode(out[start.start() :].lstrip())[0]


def amd_smi(limit: float) -> "list[dict[str, Any]]":
    """AMD's cards by amd-smi (ROCm 6 and later). Raises Unreadable, and what a strange shape of its answer raises."""
    data = _json_of(["amd-smi", "static", "--asic", "--vram", "--json"], limit)
    found = []
    for row in data["gpu_data"] if isinstance(data, dict) else data:
        size = row.get("vram", {}).get("size")
        mib = size.get("value") if isinstance(size, dict) else str(size).partition(" ")[0]
        asic = row["asic"]
        gpu = {"name": _told(asic.get("market_name")), "arch": _told(asic.get("target_graphics_version"))}  # type: dict[str, Any]
        if str(mib).isdigit():
            gpu["memory_total"] = int(str(mib)) << 20
        found.append(gpu)
    return _large(found)


def rocm_smi(limit: float) -> "list[dict[str, Any]]":
    """AMD's cards by rocm-smi. Raises as amd_smi does."""
    data = _json_of(["rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"], limit)
    found = []
    for card in sorted((n for n in data if re.match(r"card\d+$", n)), key=lambda n: int(n[4:])):
        row = {key.lower(): value for key, value in data[card].items()}
        gpu = {"name": _told(row.get("card series")), "arch": _told(row.get("gfx version"))}  # type: dict[str, Any]
        total, used = str(row.get("vram total memory (b)")), str(row.get("vram total used memory (b)"))
        if total.isdigit():
            gpu["memory_total"] = int(total)
            if used.isdigit():
                gpu["memory_free"] = int(total) - int(used)
        found.append(gpu)
    return _large(found)


def _told(value: "Any") -> str:
    return "" if value in (None, "N/A") or str(value).startswith("0x") else str(value)


def _large(gpus: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    return [g for g in gpus if g.get("memory_total", _SMALLEST_AMD) >= _SMALLEST_AMD]


def xpu_smi(limit: float) -> "list[dict[str, Any]]":
    """Intel's cards by xpu-smi, with their memory. Raises as amd_smi does."""
    from time import monotonic

    end = monotonic() + limit
    found = []
    for row in _json_of(["xpu-smi", "discovery", "-j"], limit)["device_list"]:
        gpu = {"name": _told(row.get("device_name")).replace("(R)", "").replace("(TM)", "")}  # type: dict[str, Any]
        more = _json_of(["xpu-smi", "discovery", "-d", str(row["device_id"]), "-j"], end - monotonic())
        for ours, theirs in (("memory_total", "memory_physical_size_byte"), ("memory_free", "memory_free_size_byte")):
            if str(more.get(theirs)).isdigit():
                gpu[ours] = int(more[theirs])
        found.append(gpu)
    return found


def apple_chip() -> str:
    """`Apple M3 Max`. Its GPU uses the computer's own memory, so it has no size of its own."""
    import ctypes

    try:
        buffer, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
        name = b"machdep.cpu.brand_string"
        if ctypes.CDLL(None).sysctlbyname(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) == 0:
            return buffer.value.decode("utf-8", "replace") or "Apple"
    except (OSError, AttributeError):
        pass
    return "Apple"


_NVML_ERRORS = {
    9: "the NVIDIA driver is not loaded",
    12: "a library of the NVIDIA driver is missing",
    15: "the GPU has fallen off the bus",
    17: "the operating system blocks the GPU",
    18: "the NVIDIA driver and its library are of different versions: restart the machine (or reload the driver)",
    4: "no permission to talk to the NVIDIA driver",
    999: "the NVIDIA driver reports an unknown error",
}


class NvmlError(Exception):
    """A call of NVML that gave an error code; -1 where the library has no such function."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def nvml() -> "tuple[list[dict[str, Any]], dict[str, Any]]":
    """GPUs and driver from libnvidia-ml: by nvidia-ml-py where this interpreter has it, else by ctypes alone.

    ctypes stays beside it: this file is also run over ssh, and in interpreters and environments without that package,
    which looks for the library in fewer places (not in WSL's folder or NixOS's). Raises Unreadable.
    """
    try:
        ask = _bindings()
        if ask is not None:
            return _nvml(ask, "nvidia-ml-py")
    except Exception:  # noqa: BLE001, S110 - whatever is wrong with that package: ctypes asks the library next, and says so
        pass
    return _nvml(_by_ctypes(), "NVML")


def _nvml(ask: "Callable[..., Any]", source: str) -> "tuple[list[dict[str, Any]], dict[str, Any]]":
    """`ask(name, *arguments)` calls a function of NVML by the name that nvidia-ml-py gives it, or raises NvmlError."""

    def say(name: str, *arguments: "Any") -> "Any":
        try:
            return ask(name, *arguments)
        except NvmlError:
            return None

    try:
        ask("nvmlInit")
    except NvmlError as error:
        raise Unreadable("NVML: " + _NVML_ERRORS.get(error.code, f"error {error.code} at the start")) from None
    try:
        driver = {"version": say("nvmlSystemGetDriverVersion") or "", "source": source}
        cuda = say("nvmlSystemGetCudaDriverVersion")
        if cuda:
            driver["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
        count = say("nvmlDeviceGetCount")
        if count is None:
            raise Unreadable("NVML does not say how many GPUs there are")
        gpus = []
        for index in range(count):
            try:
                device = ask("nvmlDeviceGetHandleByIndex", index)
            except NvmlError as error:
                told = _NVML_ERRORS.get(error.code, f"error {error.code}")
                raise Unreadable(f"NVML, GPU {index}: " + told) from None
            gpus.append(_nvml_gpu(say, device, index))
        return gpus, driver
    finally:
        say("nvmlShutdown")


def _nvml_gpu(say: "Callable[..., Any]", device: "Any", index: int) -> "dict[str, Any]":
    gpu = {"name": say("nvmlDeviceGetName", device) or "", "index": index}  # type: dict[str, Any]
    gpu["uuid"] = say("nvmlDeviceGetUUID", device) or ""
    capability = say("nvmlDeviceGetCudaComputeCapability", device)
    if capability is not None:
        gpu["capability"] = "{}.{}".format(*capability)
    memory = say("nvmlDeviceGetMemoryInfo", device)
    if memory is not None:
        gpu["memory_total"], gpu["memory_free"] = memory
    mig = say("nvmlDeviceGetMigMode", device)
    if mig is not None:
        gpu["mig"] = bool(mig[0])
    modes = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}
    gpu["compute_mode"] = modes.get(say("nvmlDeviceGetComputeMode", device) or 0, "")
    gpu["processes"] = []
    for pid, held in say("nvmlDeviceGetComputeRunningProcesses", device) or []:
        process = {"pid": pid, "name": read_text(f"/proc/{pid}/comm").strip()}
        gpu["processes"].append(process if held is None else dict(process, memory=held))
    most = say("nvmlDeviceGetMaxMigDeviceCount", device) if gpu.get("mig") else None
    if most is not None:
        parts = [say("nvmlDeviceGetMigDeviceHandleByIndex", device, n) for n in range(most)]
        # Places without a slice say "not found".
        gpu["slices"] = [_nvml_slice(say, part) for part in parts if part is not None]
    ecc = say("nvmlDeviceGetEccMode", device)
    if ecc is not None:
        gpu["ecc"] = bool(ecc[0])
        # Uncorrected errors since the driver was loaded.
        errors = say("nvmlDeviceGetTotalEccErrors", device, 1, 0) if gpu["ecc"] else None
        if errors is not None:
            gpu["ecc_errors"] = errors
    return gpu


def _nvml_slice(say: "Callable[..., Any]", part: "Any") -> "dict[str, Any]":
    memory = say("nvmlDeviceGetMemoryInfo", part)
    found = {"uuid": say("nvmlDeviceGetUUID", part) or "", "name": say("nvmlDeviceGetName", part) or ""}
    return found if memory is None else dict(found, memory_total=memory[0])


BINDINGS = "QLORA_DOCTOR_NVML_BINDINGS"
"""The variable that names pynvml.py for a process without site-packages."""


def bindings_file() -> str:
    """Where nvidia-ml-py lies for this interpreter; "" where it is not installed (a folder `pynvml` is another's)."""
    for place in search_path():
        path = os.path.join(place, "pynvml.py")
        if os.path.isfile(path):
            return path
    return ""


def _bindings() -> "Callable[..., Any] | None":
    path = os.environ.get(BINDINGS) or bindings_file()
    if not path:
        return None
    import importlib.util

    spec = importlib.util.spec_from_file_location("pynvml", path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pynvml"] = module  # it looks itself up there while it is being imported
    spec.loader.exec_module(module)

    def ask(name: str, *arguments: "Any") -> "Any":
        try:
            given = getattr(module, name)(*arguments)
        except module.NVMLError as error:
            raise NvmlError(int(getattr(error, "value", -1))) from None
        except AttributeError:
            raise NvmlError(-1) from None
        if name == "nvmlDeviceGetMemoryInfo":
            return int(given.total), int(given.free)
        if name == "nvmlDeviceGetComputeRunningProcesses":
            return [(int(p.pid), None if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in given]
        return given.decode("utf-8", "replace") if isinstance(given, bytes) else given

    return ask


_NVML_TEXT = ("nvmlSystemGetDriverVersion", "nvmlDeviceGetName", "nvmlDeviceGetUUID")
_NVML_PAIR = ("nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetMigMode", "nvmlDeviceGetEccMode")


def _by_ctypes() -> "Callable[..., Any]":
    """The few functions of NVML that are needed, in the words of nvidia-ml-py. Raises Unreadable."""
    import ctypes

    file = _nvml_file()
    if not file:
        raise Unreadable("the loader knows no libnvidia-ml.so.1")
    try:
        library = ctypes.CDLL(file)
    except OSError as error:
        raise Unreadable(f"libnvidia-ml cannot be loaded: {error}") from None

    def call(name: str, *arguments: "Any") -> None:
        # The _v2 of this one fills another structure.
        names = (name,) if name == "nvmlDeviceGetMemoryInfo" else (name + "_v2", name)
        function = next((getattr(library, n) for n in names if hasattr(library, n)), None)
        code = -1 if function is None else int(function(*arguments))
        if code != 0:
            raise NvmlError(code)

    def ask(name: str, *arguments: "Any") -> "Any":
        given = [ctypes.c_uint(a) if isinstance(a, int) else a for a in arguments]
        if name in ("nvmlInit", "nvmlShutdown"):
            return call(name)
        if name in _NVML_TEXT:
            buffer = ctypes.create_string_buffer(128)
            call(name, *given, buffer, ctypes.c_uint(128))
            return buffer.value.decode("utf-8", "replace")
        if name in _NVML_PAIR:
            first, second = ctypes.c_int(), ctypes.c_int()
            call(name, *given, ctypes.byref(first), ctypes.byref(second))
            return first.value, second.value
        if "HandleByIndex" in name:
            device = ctypes.c_void_p()
            call(name, *given, ctypes.byref(device))
            return device
        if name == "nvmlDeviceGetMemoryInfo":
            memory = (ctypes.c_ulonglong * 3)()
            call(name, *given, ctypes.byref(memory))
            return memory[0], memory[1]
        if name == "nvmlDeviceGetTotalEccErrors":
            total = ctypes.c_ulonglong()
            call(name, *given, ctypes.byref(total))
            return total.value
        if name == "nvmlDeviceGetComputeRunningProcesses":
            return _nvml_processes(library, given[0])
        value = ctypes.c_int()
        call(name, *given, ctypes.byref(value))
        return value.value

    return ask


def _nvml_processes(library: "Any", device: "Any") -> "list[tuple[int, int | None]]":
    import ctypes

    class Process(ctypes.Structure):
        _fields_ = [
            ("pid", ctypes.c_uint),
            ("memory", ctypes.c_ulonglong),
            ("gpu_instance", ctypes.c_uint),
            ("compute_instance", ctypes.c_uint),
        ]

    # Only _v3 (driver 510 and later) is sure to have this layout.
    function = getattr(library, "nvmlDeviceGetComputeRunningProcesses_v3", None)
    if function is None:
        return []
    count, rows = ctypes.c_uint(256), (Process * 256)()
    if function(device, ctypes.byref(count), ctypes.byref(rows)) != 0:
        return []
    return [(int(r.pid), int(r.memory) if r.memory < 1 << 62 else None) for r in rows[: count.value]]


_SMI_FIELDS = (
    ("index", "name", "uuid", "driver_version", "memory.total", "memory.free", "compute_mode", "compute_cap",
     "mig.mode.current"),
    ("index", "name", "uuid", "driver_version", "memory.total", "memory.free", "compute_mode"),
)  # fmt: skip


def nvidia_smi(limit: float = 5.0) -> "tuple[list[dict[str, Any]], dict[str, Any]]":
    """GPUs and driver as nvidia-smi tells them, all calls together within `limit` seconds. Raises Unreadable."""
    from time import monotonic

    program = _on_path("nvidia-smi")
    if not program:
        raise Unreadable("nvidia-smi is not on PATH")
    end = monotonic() + limit
    code, out = 1, ""
    for fields in _SMI_FIELDS:  # old drivers refuse a query that holds a name they do not know
        query = ["--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"]
        code, out = _run([program, *query], end - monotonic())
        if code == 0:
            break
    if code != 0 and "No devices were found" not in out:
        last = [line.strip() for line in out.splitlines() if line.strip()]
        raise Unreadable(f"nvidia-smi failed (exit status {code})" + (": " + last[0] if last else ""))
    gpus = []
    driver = {"source": "nvidia-smi"}
    for line in out.splitlines() if code == 0 else []:
        cells = [c.strip() for c in line.split(",")]
        if len(cells) != len(fields) or not cells[0].isdigit():
            continue
        row = {k: v for k, v in zip(fields, cells) if v != "N/A" and v[:1] != "["}  # noqa: B905 - 3.8 has no strict=
        gpu = {"name": row.get("name", ""), "index": int(cells[0]), "uuid": row.get("uuid", "")}  # type: dict[str, Any]
        for ours, theirs in (("memory_total", "memory.total"), ("memory_free", "memory.free")):
            if row.get(theirs, "").isdigit():
                gpu[ours] = int(row[theirs]) << 20
        if re.match(r"\d+\.\d+$", row.get("compute_cap", "")):
            gpu["capability"] = row["compute_cap"]
        gpu["mig"] = row.get("mig.mode.current") == "Enabled"
        gpu["compute_mode"] = row.get("compute_mode", "").lower().replace("_", "-")
        driver["version"] = row.get("driver_version", driver.get("version", ""))
        gpus.append(gpu)
    try:
        banner = _run([program], end - monotonic())[1]
    except Unreadable:
        banner = ""
    # From driver 610 on the banner says `KMD Version` and `CUDA UMD Version`.
    cuda = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", banner)
    named = re.search(r"(?:Driver|KMD) Version\s*:\s*(\d+(?:\.\d+)+)", banner)
    if cuda:
        driver["cuda"] = cuda.group(1)
    if named and not driver.get("version"):
        driver["version"] = named.group(1)
    if not driver.get("version"):
        raise Unreadable("nvidia-smi names no driver version")
    try:
        _smi_more(program, gpus, end)
    except Unreadable:
        pass  # what is known by now is enough to judge by
    return gpus, driver


def _smi_more(program: str, gpus: "list[dict[str, Any]]", end: float) -> None:
    """Adds who holds memory, ECC and MIG slices, as far as nvidia-smi tells them before `end`. Raises Unreadable."""
    from time import monotonic

    form = "--format=csv,noheader,nounits"
    by_uuid = {g["uuid"]: g for g in gpus if g["uuid"]}
    by_index = {str(g["index"]): g for g in gpus}
    wanted = "--query-compute-apps=gpu_uuid,pid,used_memory,process_name"
    for line in _run([program, wanted, form], end - monotonic())[1].splitlines():
        cells = [c.strip() for c in line.split(",", 3)]
        if len(cells) == 4 and cells[0] in by_uuid and cells[1].isdigit():
            process = {"pid": int(cells[1]), "name": redact(re.split(r"[\\/]", cells[3])[-1])}  # type: dict[str, Any]
            if cells[2].isdigit():
                process["memory"] = int(cells[2]) << 20
            by_uuid[cells[0]].setdefault("processes", []).append(process)
    wanted = "--query-gpu=index,ecc.mode.current,ecc.errors.uncorrected.volatile.total"
    for line in _run([program, wanted, form], end - monotonic())[1].splitlines():
        cells = [c.strip() for c in line.split(",")]
        if len(cells) == 3 and cells[0] in by_index and cells[1] in ("Enabled", "Disabled"):
            by_index[cells[0]]["ecc"] = cells[1] == "Enabled"
            if cells[2].isdigit():
                by_index[cells[0]]["ecc_errors"] = int(cells[2])
    if not any(g["mig"] for g in gpus):
        return
    current = {}  # type: dict[str, Any]
    for line in _run([program, "-L"], end - monotonic())[1].splitlines():
        whole = re.match(r"GPU (\d+): ", line)
        part = re.match(r"\s+MIG (\S+)\s.*\(UUID: (MIG-[^)]+)\)", line)
        if whole:
            current = by_index.get(whole.group(1), {})
            if current.get("mig"):
                current["slices"] = []
        elif part and "slices" in current:
            current["slices"].append(
                {"uuid": part.group(2), "name": "{} MIG {}".format(current["name"], part.group(1))}
            )


def _run(command: "list[str]", limit: float) -> "tuple[int, str]":
    """Exit status and output (both streams) of a program. Raises Unreadable where it takes longer than `limit`."""
    import signal
    import subprocess

    name = os.path.basename(command[0])
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=os.name != "nt",
        )
    except OSError as error:
        raise Unreadable(f"{name} cannot be started: {error.strerror}") from None
    try:
        out = process.communicate(timeout=max(limit, 0.05))[0]
        return process.returncode, out.decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        # A process that hangs in the driver cannot be killed; so it is not waited for without end either.
        if os.name == "nt":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout:
            process.stdout.close()
        try:
            process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            pass
        raise Unreadable(f"{name} did not answer in time") from None


# ---- native libraries

_CUDA_LIBRARY = re.compile(r"(lib(?:cudart|cublas|cublasLt|cusparse|cusolver|nvJitLink|cudnn|nccl))\.so[.\d]*$")
_VERSIONED = re.compile(r"\.so\.(\d+(?:\.\d+)+)$")


def native(folders: "list[tuple[str, list[str]]]", root: str = "/") -> "dict[str, Any]":
    """The `native` part. Reads names and ELF headers; loads nothing."""
    if not sys.platform.startswith("linux"):
        return {}
    own = [p for p in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
    return {
        "libcuda": libcuda_copies(own, root),
        "toolkits": toolkits(root),
        "nvcc": _nvcc_version(),
        "on_path": cuda_copies(own),
        "binaries": binaries(find_roots(folders)),
        "provided": _offered_by_libstdcxx(own, root),
    }


def _file_version(path: str) -> str:
    """`550.120` of a link libcuda.so.1 to libcuda.so.550.120; "" where the name does not tell."""
    match = _VERSIONED.search(os.path.realpath(path))
    return match.group(1) if match else ""


def libcuda_copies(own: "list[str]", root: str = "/") -> "list[dict[str, str]]":
    """The copies of libcuda.so.1: LD_LIBRARY_PATH, then what the loader's cache names, then the usual folders."""
    name = "libcuda.so.1"
    machine = os.uname()[4]
    cache = read_text(root + "etc/ld.so.cache", 8 << 20)
    cached = [os.path.dirname(p) for p in re.findall(r"/[\w./+-]*/" + re.escape(name) + r"(?=\x00)", cache)]
    usual = [f"usr/lib/{machine}-linux-gnu", "usr/lib64", "usr/lib", f"lib/{machine}-linux-gnu", "lib64"]
    others = ["usr/lib/wsl/lib", "usr/local/nvidia/lib64", "usr/local/cuda/compat", "run/opengl-driver/lib"]
    found, seen = [], set()  # type: list[dict[str, str]], set[str]
    for by, places in (
        ("LD_LIBRARY_PATH", own),
        ("ld.so.cache", cached),
        ("loader", [root + p for p in usual]),
        ("not on the loader's path", [root + p for p in others]),
    ):
        for place in places:
            path = os.path.join(place, name)
            real = os.path.realpath(path)
            if not os.path.exists(path) or real in seen:
                continue
            seen.add(real)
            words = real.split(os.sep) + path.split(os.sep)
            kind = (
                "stub" if "stubs" in words else "compat" if "compat" in words else "wsl" if "wsl" in words else "driver"
            )
            found.append({"name": name, "path": path, "version": _file_version(path), "kind": kind, "by": by})
    return found


def cuda_copies(own: "list[str]") -> "list[dict[str, str]]":
    """CUDA libraries in the folders of LD_LIBRARY_PATH, one for each name and folder."""
    found = []
    for folder in own:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        best = {}  # type: dict[str, str]
        for name in names:
            match = _CUDA_LIBRARY.match(name)
            # The longest name has the full version: libcublas.so.12.1.3.1.
            if match and len(name) > len(best.get(match.group(1), "")):
                best[match.group(1)] = name
        for base in sorted(best):
            path = os.path.join(folder, best[base])
            version = _file_version(path) or best[base].partition(".so.")[2]
            found.append({"name": base, "path": path, "version": version, "by": "LD_LIBRARY_PATH"})
    return found


def toolkits(root: str = "/") -> "list[dict[str, str]]":
    """CUDA toolkits in /usr/local and where CUDA_HOME points."""
    base = root + "usr/local"
    try:
        names = sorted(n for n in os.listdir(base) if re.match(r"cuda(-\d+(\.\d+)?)?$", n))
    except OSError:
        names = []
    found, seen = [], set()  # type: list[dict[str, str]], set[str]
    for path in [
        *(os.path.join(base, n) for n in names),
        os.environ.get("CUDA_HOME", ""),
        os.environ.get("CUDA_PATH", ""),
    ]:
        real = os.path.realpath(path)
        if not path or real in seen or not os.path.isdir(path):
            continue
        seen.add(real)
        stated = re.search(r'"cuda" *: *\{[^}]*"version" *: *"([\d.]+)"', read_text(os.path.join(path, "version.json")))
        version = stated.group(1) if stated else re.sub(r"^.*cuda-?", "", os.path.basename(real))
        found.append({"name": "cuda", "path": path, "version": version if version[:1].isdigit() else ""})
    return found


def _nvcc_version() -> str:
    """The toolkit's version beside the nvcc on PATH; nvcc itself is not started."""
    program = _on_path("nvcc")
    if not program:
        return ""
    home = os.path.dirname(os.path.dirname(os.path.realpath(program)))
    stated = re.search(r'"cuda" *: *\{[^}]*"version" *: *"([\d.]+)"', read_text(os.path.join(home, "version.json")))
    named = re.search(r"cuda-(\d+\.\d+)", home)
    return stated.group(1) if stated else named.group(1) if named else "unknown"


_COMPILED = {
    "torch": ("lib/libtorch_cpu.so", "lib/libc10.so", "lib/libtorch_cuda.so"),
    "bitsandbytes": (),
    "tokenizers": ("tokenizers.abi3.so",),
    "safetensors": ("_safetensors_rust.abi3.so",),
    "triton": ("_C/libtriton.so",),
    "xformers": ("_C.so",),
}  # type: dict[str, tuple[str, ...]]


def binaries(roots: "dict[str, str]") -> "list[dict[str, Any]]":
    """What the compiled files of the stack ask of the system."""
    found = []
    for module in sorted(_COMPILED):
        root = roots.get(module, "")
        if not os.path.isdir(root):
            continue
        files = list(_COMPILED[module])
        if module == "bitsandbytes":
            files = sorted(n for n in os.listdir(root) if n.startswith("libbitsandbytes_") and n.endswith(".so"))
        for file in files:
            described = elf(os.path.join(root, *file.split("/")))
            if described is not None:
                found.append(dict(described, module=module, file=file))
    site = os.path.dirname(roots.get("flash_attn", ""))
    if site and os.path.isdir(site):
        for name in sorted(n for n in os.listdir(site) if re.match(r"flash_attn_\d_cuda\b.*\.so$", n)):
            described = elf(os.path.join(site, name))
            if described is not None:
                found.append(dict(described, module="flash_attn", file=name))
    return found


_MACHINES = {62: "x86_64", 183: "aarch64", 21: "ppc64le", 243: "riscv64"}


def elf(path: str) -> "dict[str, Any] | None":
    """Machine, version floors and CUDA libraries of a 64-bit ELF file; None for what is none, or is cut short."""
    import struct

    try:
        with open(path, "rb") as file:
            return _elf(file, struct)
    except (OSError, struct.error, IndexError, ValueError, OverflowError):
        return None


def _elf(file: "Any", struct: "Any") -> "dict[str, Any] | None":
    head = file.read(64)
    if head[:6] != b"\x7fELF\x02\x01":
        return None
    machine, offset = struct.unpack_from("<H", head, 18)[0], struct.unpack_from("<Q", head, 40)[0]
    size, count = struct.unpack_from("<HH", head, 58)

    def at(place: int, length: int) -> bytes:
        file.seek(place)
        data = file.read(length)  # type: bytes
        return data

    sections = [struct.unpack("<IIQQQQIIQQ", at(offset + n * size, 64)) for n in range(min(count, 4096))]

    def name(strings: int, place: int) -> str:
        # The string table of libtorch has 30 MB; only these few names of it are read.
        return at(sections[strings][4] + place, 256).split(b"\0", 1)[0].decode("ascii")

    floors, links = {}, []  # type: dict[str, str], list[str]
    for section in sections:
        kind, start, length, strings = section[1], section[4], section[5], section[6]
        if kind == 0x6FFFFFFE:  # the versions that are asked for
            need = start
            for _ in range(min(section[7], 100)):
                entries, _file, first, following = struct.unpack("<HIII", at(need + 2, 14))
                place = need + first
                for _entry in range(min(entries, 1000)):
                    _hash, _flags, _other, text, step = struct.unpack("<IHHII", at(place, 16))
                    what, _, version = name(strings, text).rpartition("_")
                    known = what in ("GLIBC", "GLIBCXX", "CXXABI") and re.match(r"[\d.]+$", version)
                    if known and _numbers(version) > _numbers(floors.get(what, "0")):
                        floors[what] = version
                    place += step
                    if not step:
                        break
                need += following
                if not following:
                    break
        elif kind == 6:  # the dynamic section, for the libraries that it names
            data = at(start, min(length, 1 << 16))
            for place in range(0, len(data) - 15, 16):
                tag, value = struct.unpack_from("<qQ", data, place)
                if tag == 0:
                    break
                if tag == 1:
                    library = name(strings, value)
                    if _CUDA_LIBRARY.match(library):
                        links.append(library)
    return {"machine": _MACHINES.get(machine, ""), "floors": floors, "links": sorted(links)}


def _numbers(version: str) -> "tuple[int, ...]":
    return tuple(int(n) for n in version.split(".") if n)


def _offered_by_libstdcxx(own: "list[str]", root: str = "/") -> "dict[str, str]":
    """The newest versions in the libstdc++ that this process would load: LD_LIBRARY_PATH, then conda's, then the system's."""
    places = [*own, os.path.join(sys.prefix, "lib")]
    places += [
        root + p
        for p in (f"usr/lib/{os.uname()[4]}-linux-gnu", "usr/lib64", "usr/lib", f"lib/{os.uname()[4]}-linux-gnu")
    ]
    for place in places:
        path = os.path.join(place, "libstdc++.so.6")
        if not os.path.exists(path):
            continue
        try:
            with open(path, "rb") as file:
                data = file.read(8 << 20)
        except OSError:
            continue
        offered = {}
        for what in ("GLIBCXX", "CXXABI"):
            # Names stand one after the other, so the zero that ends one begins the next.
            versions = re.findall(rb"\0" + what.encode("ascii") + rb"_(\d+(?:\.\d+)+)(?=\0)", data)
            if versions:
                offered[what] = max((v.decode("ascii") for v in versions), key=_numbers)
        return offered
    return {}


if __name__ == "__main__":
    main(sys.argv[1:])
