"""QD010 to QD020: what is broken in the installation itself, whatever the versions are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qlora_checks import stack
from qlora_doctor.facts import Facts, canonical
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Fix, PipRequirement
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests


@check("QD010", needs=["packages"], since="0.1")
def distribution_installed_twice(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Two copies of one distribution lie on sys.path; which one runs depends on the order of the folders.

    Two `.dist-info` folders in one site-packages are what an interrupted upgrade leaves: the files are those of one
    version, the version number may be that of the other, and comparisons of versions go wrong. Copies in two folders
    (a virtual environment over the system's packages, the user site, PYTHONPATH) hide each other, which is often meant.

    A warning where both lie in one folder and the package is of the stack; an info otherwise, and nothing for packages
    outside the stack that lie in two folders.

    Fix: uninstall it until pip says that it is not installed, then install it once. Not done by us: pip removes the
    files of whichever copy it finds first.

    Source: the folders on sys.path.
    """
    for name, locations in facts.packages.duplicates.items():
        distribution = stack.by_name(facts.packages).get(name)
        folder = distribution.location if distribution else ""
        together = any(re.split(r"[\\/][^\\/]*\Z", path)[0] == folder or path == folder for path in locations)
        if not together and name not in stack.STACK:
            continue
        yield Finding(
            "{package} is installed more than once: {version} is taken, and another copy lies at {locations}."
            " Uninstall it until none is left, then install it once.",
            {"package": name, "version": distribution.version if distribution else "one", "locations": list(locations)},
            severity="warning" if together and name in stack.STACK else "info",
            fixes=(Advice(f"uninstall {name} until none is left, then install it once", f"pip uninstall -y {name}"),),
        )


@check("QD011", needs=["packages"], since="0.1")
def leftovers_of_an_interrupted_install(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """Folders such as `~orch` in site-packages: pip was interrupted while it replaced a package.

    pip renames the old folder before it puts the new one in place. When it is stopped then (or a file is in use, on
    Windows), the renamed folder stays. By itself it is harmless, and pip warns of an "invalid distribution" at every
    call; but the package may be half installed.

    An info where the package is there and complete, a warning where it is not.

    Fix: remove the folder; install the package again where it is incomplete.

    Source: the folders on sys.path.
    """
    for path in facts.packages.leftovers:
        name = _whose(path)
        whole = name == "" or (
            stack.installed(facts, name) is not None
            and canonical(name) not in map(canonical, facts.packages.without_package)
        )
        yield Finding(
            "{path} was left by an interrupted pip{whose}. Remove it{then}.",
            {
                "path": path,
                "whose": f" (it was {name})" if name else "",
                "then": "" if whole else f" and install {name} again, which is incomplete",
            },
            severity="info" if whole else "warning",
            fixes=(Advice(f"remove {path}"),),
        )


def _whose(path: str) -> str:
    """`torch` for `~orch` and `~orch-2.3.1.dist-info`; "" where it is no package of the stack."""
    rest = canonical(re.split(r"[\\/]", path)[-1].lstrip("~").partition("-")[0])
    return next((name for name in sorted(stack.STACK) if len(rest) > 2 and name.endswith(rest)), "")


@check("QD012", needs=["packages"], since="0.1")
def metadata_that_cannot_be_read(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A `.dist-info` folder has no readable METADATA, so nobody knows which version is installed.

    transformers and others ask for versions through this metadata and take a package without it for absent. The usual
    cause is a full disk or a stopped install.

    Fix: install the package again (`pip install --force-reinstall --no-deps NAME`).

    Source: the folders on sys.path.
    """
    for path in facts.packages.broken:
        name = canonical(re.split(r"[\\/]", path)[-1].partition("-")[0])
        yield Finding(
            "the metadata of {package} cannot be read ({path}): it counts as not installed. Install it again.",
            {"package": name, "path": path},
            severity="warning" if name in stack.STACK else "info",
            fixes=(Advice(f"install {name} again", f"pip install --force-reinstall --no-deps {name}"),),
        )


@check("QD013", needs=["packages"], since="0.1", requires=["QD012"])
def package_without_metadata(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A package of the stack can be imported but has no metadata: a copied folder, or the rest of an uninstall.

    transformers asks importlib.metadata for the versions of bitsandbytes, accelerate and peft, finds none, and takes
    the package for absent. pip does not see it either, and neither does any check of versions here.

    An error where the run takes a path on which transformers asks, else a warning.

    Fix: remove the folder and install the package.

    Source: `_is_package_available` of transformers; the folders on sys.path.
    """
    breaks = {"bitsandbytes": ("quantized",), "accelerate": ("quantized", "training"), "peft": ("adapters",)}
    for path in facts.packages.without_metadata:
        name = re.split(r"[\\/]", path)[-1].removesuffix(".py")
        yield Finding(
            "{package} lies at {path} without metadata: transformers takes it for absent. Remove it and install"
            " {requirement}.",
            {"package": name, "path": path, "requirement": stack.requirement(facts, canonical(name))},
            severity=stack.severity(requests, breaks.get(name, ())),
            fixes=(Advice(f"remove {path}, then install {name}", f"pip install {name}"),),
        )


@check("QD014", needs=["packages"], since="0.1")
def metadata_without_package(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A distribution is listed as installed, but its package folder is gone.

    pip believes that it is there and will not install it again by itself; the import fails. The usual cause is a
    folder deleted by hand, or an uninstall of another distribution that shared the folder.

    An error where the run imports it, else a warning.

    Fix: uninstall and install it again.

    Source: the folders on sys.path.
    """
    for name in facts.packages.without_package:
        yield Finding(
            "{package} {version} is listed as installed, but its files are gone. Install it again with --force-reinstall.",
            {"package": name, "version": stack.installed(facts, name) or ""},
            severity=stack.severity(requests, (f"import:{canonical(name).replace('-', '_')}",)),
            fixes=(Advice(f"install {name} again", f"pip install --force-reinstall --no-deps {name}"),),
        )


OBSOLETE = re.compile(r"bitsandbytes-(windows(-webui)?|cuda\d+)\Z")


@check("QD015", needs=["packages"], since="0.1")
def obsolete_distribution_in_the_way(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """An old distribution under another name brings its own `bitsandbytes` package.

    `bitsandbytes-windows`, `bitsandbytes-windows-webui` and `bitsandbytes-cuda11x` were stand-ins of 2022 and 2023.
    They write into the same folder as bitsandbytes itself, so what is imported is a mixture, and transformers compares
    the version of whichever metadata it finds.

    An error where the run quantises or imports bitsandbytes, else a warning.

    Fix: uninstall both, then install bitsandbytes, which has wheels for Windows since 0.43. Both, because removing the
    old one takes shared files away.

    Source: the file lists of these distributions; the bitsandbytes changelog of 0.43.0.
    """
    for name, distribution in stack.by_name(facts.packages).items():
        if not OBSOLETE.match(name):
            continue
        wanted = stack.requirement(facts, "bitsandbytes", "0.43.0")
        both = stack.installed(facts, "bitsandbytes") is not None
        removals: tuple[Fix, ...] = (PipRequirement(name, remove=True),)
        if both:
            removals = (*removals, PipRequirement("bitsandbytes", remove=True))
        yield Finding(
            "{package} {version} brings an outdated bitsandbytes package of its own{both}. Uninstall it, then install"
            " {requirement}.",
            {
                "package": name,
                "version": distribution.version,
                "both": ", mixed into the files of bitsandbytes" if both else "",
                "requirement": wanted,
            },
            severity=stack.severity(requests, ("import:bitsandbytes",)),
            fixes=(*removals, PipRequirement(wanted)),
        )


@check("QD016", needs=["packages"], since="0.1")
def file_left_by_an_unquoted_requirement(facts: Facts) -> Iterator[Finding]:
    """A file named like `=0.44.0`: the shell took the `>` of an unquoted `pip install bitsandbytes>=0.44.0`.

    The command installed *some* version of bitsandbytes, without the condition, and wrote pip's output into the file.
    So the version that was asked for may never have been installed.

    An info: the file itself does no harm.

    Fix: quote the requirement (`pip install "bitsandbytes>=0.44.0"`), look at the version, remove the file.

    Source: the project's folder.
    """
    for path in facts.packages.stray:
        version = re.split(r"[\\/]", path)[-1].lstrip("=")
        yield Finding(
            "{path} is what the shell made of an unquoted pip install NAME>={version}: the condition was lost. Quote the"
            ' requirement (pip install "NAME>={version}") and remove the file.',
            {"path": path, "version": version},
            severity="info",
            fixes=(Advice(f"remove {path}"),),
        )


@check("QD017", needs=["shadows"], since="0.1")
def module_hidden_by_a_local_one(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A file or folder of your own has the name of a package of the stack and is imported in its place.

    Python looks into the script's folder first: a `torch.py` or `datasets/` beside the script is imported wherever any
    library says `import torch`, and fails there with "partially initialized module" or a missing attribute.

    An error where it lies beside the script and the run imports the package; a warning otherwise: a folder on
    PYTHONPATH may be meant, and the current folder counts only for `python -m` and notebooks.

    Fix: rename the file or folder.

    Source: the order of sys.path.
    """
    for shadow in facts.shadows:
        beside = shadow.by == "script folder"
        yield Finding(
            "{path} hides the installed {module}: import {module} takes it first ({by}). Rename it.",
            {"path": shadow.path, "module": shadow.module, "by": shadow.by, "hidden": shadow.hidden},
            severity=stack.severity(requests, (f"import:{shadow.module}",)) if beside else "warning",
            fixes=(Advice(f"rename {shadow.path}"),),
        )


CHECKS: tuple[Check, ...] = (
    distribution_installed_twice,
    leftovers_of_an_interrupted_install,
    metadata_that_cannot_be_read,
    package_without_metadata,
    metadata_without_package,
    obsolete_distribution_in_the_way,
    file_left_by_an_unquoted_requirement,
    module_hidden_by_a_local_one,
)
