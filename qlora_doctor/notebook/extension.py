"""What the extension hangs into a shell: the magic, and a look at each cell before and after it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from qlora_doctor.errors import QloraDoctorError
from qlora_doctor.notebook.cells import Cells

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult, InteractiveShell

MAGIC = "qlora_check"


class Extension:
    """The hooks of one shell.

    The diagnosis is shown after a cell, by an event, and not by `set_custom_exc`: of such a handler there can be only one,
    and the traceback, `%debug` and `%xmode` stay as they are.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.shell = shell
        history = shell.history_manager
        self.cells = Cells(history.input_hist_raw if history is not None else ())
        self.number = 1

    def load(self) -> None:
        self.shell.events.register("pre_run_cell", self.before)
        self.shell.events.register("post_run_cell", self.after)
        self.shell.register_magic_function(self.magic, "line_cell", MAGIC)

    def unload(self) -> None:
        self.shell.events.unregister("pre_run_cell", self.before)
        self.shell.events.unregister("post_run_cell", self.after)
        self.shell.magics_manager.magics["line"].pop(MAGIC, None)
        self.shell.magics_manager.magics["cell"].pop(MAGIC, None)

    def before(self, info: ExecutionInfo) -> None:
        """Remembers the cell, so that `%qlora_check` can judge what ran, each cell in its last version."""
        # By the history, as the counter stands at this cell or the next, depending on the version of IPython.
        history = self.shell.history_manager
        self.number = self.shell.execution_count if history is None else len(history.input_hist_raw)
        if info.store_history and isinstance(info.raw_cell, str):
            self.cells.add(info.raw_cell, self.number, getattr(info, "cell_id", None))

    def after(self, result: ExecutionResult) -> None:
        """Shows the diagnosis of the exception that ended the cell, where one is known."""
        error = result.error_in_exec
        if isinstance(error, Exception):
            from qlora_doctor.notebook.explain import explain

            explanation = explain(error)
            if explanation is not None:
                self._show(explanation)

    def magic(self, line: str, cell: str | None = None) -> Any:
        """Judges the environment and the cells of this notebook: `%qlora_check --help` shows the options.

        As `%%qlora_check` at the head of a cell it judges that cell too, and does not run it.
        """
        from IPython.utils.process import arg_split

        from qlora_doctor.notebook.magic import run

        try:
            # The line of the magic itself comes before the cell's own lines.
            extra = None if cell is None else "\n" + cell
            return run(arg_split(line), self.cells, extra, self.number)
        except QloraDoctorError as error:
            print(f"error: {error}", file=sys.stderr)
            return None

    def _show(self, answer: Any) -> None:
        from IPython.display import display

        display(answer)
