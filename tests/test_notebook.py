"""The IPython extension, in real kernels that execute real notebooks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel (the test extra)")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (the test extra)")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel (the test extra)")
IPYTHON = pytest.importorskip("IPython").version_info[0]

KNOWN = (
    "raise ImportError('Using `bitsandbytes` 4-bit quantization requires bitsandbytes: `pip install -U bitsandbytes`')"
)
LOAD = """
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{word}")
"""
CALL = 'model = AutoModelForCausalLM.from_pretrained("gpt2", quantization_config=config)'
# Stands in for transformers: it can be imported and called, and does nothing.
STAND_IN = """
__version__ = "{version}"
class BitsAndBytesConfig:
    def __init__(self, **options): pass
class AutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, name, **options): pass
def fails():
    raise AttributeError("module 'transformers.utils' has no attribute 'is_torch_fx_available_x'")
"""

Notebook = Callable[..., list["Cell"]]


class Cell:
    """What one executed cell shows."""

    def __init__(self, node: Any) -> None:
        self.kinds = [output.output_type for output in node.outputs]
        self.error = next((o.ename for o in node.outputs if o.output_type == "error"), "")
        self.streams = "".join(o.text for o in node.outputs if o.output_type == "stream")
        shown = [o.data for o in node.outputs if "data" in o]
        self.text = "\n".join(data.get("text/plain", "") for data in shown)
        self.html = "\n".join(data.get("text/html", "") for data in shown)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that the kernels see first: a transformers that does nothing."""
    folder = tmp_path_factory.mktemp("packages")
    install(folder, "5.23.0")
    return folder


def install(folder: Path, version: str) -> None:
    """What pip does: the package and its metadata, in the place of those that are there."""
    for old in folder.glob("transformers-*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    (folder / "transformers").mkdir(exist_ok=True)
    (folder / "transformers" / "__init__.py").write_text(STAND_IN.replace("{version}", version), encoding="utf-8")
    info = folder / f"transformers-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n", encoding="utf-8")


@pytest.fixture
def notebook(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """Executes cells in a kernel of their own, all of them, whatever they raise; a (text, name) again is the cell edited."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*cells: str | tuple[str, str]) -> list[Cell]:
        book = nbformat.v4.new_notebook()
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
        client = nbclient.NotebookClient(
            book, timeout=120, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
        )
        nodes: dict[str, Any] = {}
        shown = []
        with client.setup_kernel():
            for index, cell in enumerate(cells):
                text, name = cell if isinstance(cell, tuple) else (cell, str(index))
                if name not in nodes:
                    nodes[name] = nbformat.v4.new_code_cell()
                    book.cells.append(nodes[name])
                nodes[name].source = text
                _send_cell_id(client.kc.session, nodes[name].id)
                client.execute_cell(nodes[name], book.cells.index(nodes[name]))
                shown.append(Cell(nodes[name]))
        return shown

    return run


def _send_cell_id(session: Any, id: str) -> None:
    """Sends the cell's id with its text, as JupyterLab does and nbclient does not."""
    plain = type(session).msg

    def msg(kind: str, *args: Any, **options: Any) -> Any:
        made = plain(session, kind, *args, **options)
        if kind == "execute_request":
            made["metadata"]["cellId"] = id
        return made

    session.msg = msg


def test_check_shows_the_report_as_html_and_as_text(notebook: Notebook) -> None:
    source = "open('run.py', 'w').write('import trl')\nimport qlora_doctor"
    cell = notebook(f"{source}\nqlora_doctor.check('run.py', select='QD009', offline=True)")[0]
    assert cell.kinds == ["execute_result"]
    assert "QD009" in cell.text
    assert '<div class="qd' in cell.html


def test_a_known_exception_is_explained_after_its_traceback_and_an_unknown_one_is_not(notebook: Notebook) -> None:
    _, known, zero, key, file = notebook("%load_ext qlora_doctor", KNOWN, "1 / 0", "{}['x']", "open('/absent')")
    assert known.error == "ImportError"
    assert known.kinds == ["error", "display_data"]
    assert known.text.startswith("qlora-doctor: ")
    assert "fix: " in known.text
    assert "bitsandbytes" in known.html
    assert [c.kinds for c in (zero, key, file)] == [["error"]] * 3


def test_before_loading_and_after_unloading_nothing_is_added(notebook: Notebook) -> None:
    before, _, _, after, magic = notebook(
        KNOWN, "%load_ext qlora_doctor", "%unload_ext qlora_doctor", KNOWN, "%qlora_check"
    )
    assert before.kinds == after.kinds == ["error"]
    assert "not found" in magic.streams


def test_loading_twice_explains_once(notebook: Notebook) -> None:
    cell = notebook("%load_ext qlora_doctor", "%reload_ext qlora_doctor\nimport qlora_doctor", KNOWN)[2]
    assert cell.kinds == ["error", "display_data"]


def test_an_exception_that_explain_errors_has_told_is_not_told_again(notebook: Notebook) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("notes on exceptions came with Python 3.11")
    cell = notebook("%load_ext qlora_doctor", f"import qlora_doctor\nwith qlora_doctor.explain_errors():\n    {KNOWN}")[
        1
    ]
    assert cell.kinds == ["error"]


def test_the_magic_judges_the_cells_that_ran_and_names_them_by_their_numbers(notebook: Notebook) -> None:
    cells = notebook("x = 1", LOAD.format(word="fp5"), "%load_ext qlora_doctor", CALL, "%qlora_check --offline")
    assert [c.error for c in cells] == [""] * 5
    assert "this notebook:cell 2:3" in cells[4].text
    assert "QD115" in cells[4].text
    assert "QD115" in cells[4].html


@pytest.mark.skipif(IPYTHON < 8, reason="IPython 7 gives a cell no id")
def test_a_cell_that_was_mended_and_ran_again_counts_as_it_is_now(notebook: Notebook) -> None:
    cells = notebook(
        "%load_ext qlora_doctor",
        (LOAD.format(word="fp5") + CALL, "load"),
        "first = %qlora_check --offline --select QD115\nfirst.ok",
        ("print('nothing is loaded any more')", "load"),
        "%qlora_check --offline --select QD115",
    )
    assert cells[2].text == "False"
    assert "nothing found" in cells[4].text


def test_a_cell_that_was_mended_before_the_extension_came_counts_as_it_is_now(notebook: Notebook) -> None:
    cells = notebook(
        LOAD.format(word="fp5") + CALL,
        LOAD.format(word="nf4") + CALL,
        "%load_ext qlora_doctor",
        "%qlora_check --offline --select QD115",
    )
    assert "nothing found" in cells[3].text


def test_a_cell_that_goes_on_with_a_name_does_not_take_the_place_of_the_one_that_made_it() -> None:
    from qlora_doctor.notebook.cells import Cells

    made = LOAD.format(word="fp5") + CALL
    case = Cells(["", made, "config = dict(r=8)\nmodel = get_peft_model(model, config)"]).case()
    assert case is not None
    assert [load.model for load in case.requests.loads] == ["gpt2"]


def test_a_cell_with_the_magic_at_its_head_is_judged_and_not_run(notebook: Notebook) -> None:
    _, _, judged, ran = notebook(
        "%load_ext qlora_doctor",
        LOAD.format(word="fp5"),
        f"%%qlora_check --offline --select QD115\nran = True\n{CALL}",
        "'ran' in globals()",
    )
    assert "QD115" in judged.text
    assert ran.text == "False"


def test_the_place_in_a_judged_cell_is_the_line_that_the_cell_shows(notebook: Notebook) -> None:
    cell = f"%%qlora_check --offline --select QD115\n{LOAD.format(word='fp5').strip()}\n{CALL}"
    judged = notebook("%load_ext qlora_doctor", cell)[1]
    assert "this notebook:cell 2:3:" in judged.text


def test_a_wrong_word_is_one_line_and_no_traceback(notebook: Notebook) -> None:
    _, option, path, help_ = notebook(
        "%load_ext qlora_doctor", "%qlora_check --ofline", "%qlora_check absent.py", "%qlora_check --help"
    )
    assert (option.error, path.error) == ("", "")
    assert "--offline" in option.streams
    assert path.streams == "error: absent.py: there is no such file or folder\n"
    assert help_.streams.startswith("Usage: %qlora_check")


def test_a_kernel_that_holds_an_older_package_is_told_to_restart(notebook: Notebook, packages: Path) -> None:
    upgrade = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_notebook as t, pathlib\n"
    upgrade += f"t.install(pathlib.Path({str(packages)!r}), '5.24.0')"
    try:
        cells = notebook(
            "import transformers",
            "%load_ext qlora_doctor",
            "%qlora_check --offline --select QD001",
            "transformers.fails()",
            upgrade,
            "%qlora_check --offline --select QD001",
            "transformers.fails()",
            "1 / 0",
        )
    finally:
        install(packages, "5.23.0")
    assert [c.error for c in cells[:3]] == [""] * 3
    assert "restart the kernel" not in cells[2].text + cells[2].html + cells[3].text
    for cell in (cells[5], cells[6]):
        assert "restart the kernel" in cell.text
        assert "transformers 5.23.0 (on disk: 5.24.0)" in cell.text.replace("\n", " ")
        assert "restart the kernel" in cell.html
    assert cells[7].kinds == ["error"]


def test_a_package_from_elsewhere_than_its_metadata_is_not_taken_for_stale(notebook: Notebook, tmp_path: Path) -> None:
    folder = tmp_path / "shadow"
    (folder / "transformers").mkdir(parents=True)
    (folder / "transformers" / "__init__.py").write_text("__version__ = '4.0'\n", encoding="utf-8")
    cell = notebook(
        f"import sys; sys.path.insert(0, {str(folder)!r})\nimport transformers, qlora_doctor\n"
        "qlora_doctor.check(offline=True, select='QD001').notes"
    )[0]
    assert cell.text == "()"
