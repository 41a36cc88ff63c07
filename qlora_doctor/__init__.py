"""Checks a 4-bit fine-tuning run before it starts: environment, model, arguments, data and GPU, and repairs what it can.

    import qlora_doctor
    qlora_doctor.check("train.py")          # in a notebook the report is shown; anywhere it has .findings and .ok

Importing this package imports nothing but itself: no torch, no transformers, no click. The functions are documented in
docs/api.md. `%load_ext qlora_doctor` gives a notebook `%qlora_check` and explains exceptions where they are raised.
"""

__version__ = "0.1.0"

# Type checkers take it for True by its name; importing typing for it would cost more than all that is here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from qlora_doctor.api import check as check
    from qlora_doctor.api import diagnose as diagnose
    from qlora_doctor.api import plan as plan
    from qlora_doctor.api import read_facts as read_facts
    from qlora_doctor.logs.explaining import explain_errors as explain_errors
    from qlora_doctor.notebook import load_ipython_extension as load_ipython_extension
    from qlora_doctor.notebook import unload_ipython_extension as unload_ipython_extension

_HOMES = {
    "check": "qlora_doctor.api",
    "diagnose": "qlora_doctor.api",
    "explain_errors": "qlora_doctor.logs.explaining",
    "load_ipython_extension": "qlora_doctor.notebook",
    "plan": "qlora_doctor.api",
    "read_facts": "qlora_doctor.api",
    "unload_ipython_extension": "qlora_doctor.notebook",
}

__all__ = ["__version__", "check", "diagnose", "explain_errors", "plan", "read_facts"]


def __getattr__(name: str) -> object:
    """The functions of this package, each imported when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
