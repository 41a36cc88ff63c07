"""The IPython extension: `%load_ext qlora_doctor`.

It gives `%qlora_check` and `%%qlora_check`, and where a cell raises an exception that is known, the diagnosis follows the
traceback. Works in Jupyter, Colab, VS Code and IPython's terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from qlora_doctor.notebook.extension import Extension

_loaded: dict[int, Extension] = {}


def load_ipython_extension(shell: InteractiveShell) -> None:
    """What `%load_ext qlora_doctor` calls. Loading it twice is loading it once."""
    from qlora_doctor.notebook.extension import Extension

    if id(shell) not in _loaded:
        _loaded[id(shell)] = Extension(shell)
        _loaded[id(shell)].load()


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """What `%unload_ext qlora_doctor` calls."""
    extension = _loaded.pop(id(shell), None)
    if extension is not None:
        extension.unload()
