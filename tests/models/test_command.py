"""A model folder on the command line, in a script, and in a saved environment."""

from __future__ import annotations

from pathlib import Path

from qlora_doctor.examine import Question, examine
from qlora_doctor.facts import Facts
from tests.models.conftest import TEXT_NAMES, Folder

FILES = ("QD314", "QD317")


def codes(question: Question) -> list[str]:
    return sorted({f.code for f in examine(question).verdict.findings})


def test_a_broken_folder_is_found_as_a_path_as_a_model_and_in_a_script(llama: Folder, tmp_path: Path) -> None:
    files = llama.shards(*TEXT_NAMES)
    llama.write(files[0], (llama.path / files[0]).read_bytes()[:-1])
    script = tmp_path / "train.py"
    script.write_text(
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(llama)!r}, load_in_4bit=True)\n",
        encoding="utf-8",
    )
    assert codes(Question(paths=(str(llama),), select=FILES)) == ["QD317"]
    assert codes(Question(model=str(llama), select=FILES)) == ["QD317"]
    answer = examine(Question(paths=(str(script),), select=FILES))
    (found,) = answer.verdict.findings
    assert found.code == "QD317" and found.site is not None and found.site.line == 2


def test_a_sound_folder_is_silent_on_the_command_line(llama: Folder) -> None:
    answer = examine(Question(model=str(llama), select=FILES))
    assert {o.outcome for o in answer.verdict.outcomes} == {"ok"}


def test_the_folder_says_which_auto_class_loads_it(llava: Folder, llama: Folder) -> None:
    def loader(folder: Folder) -> str:
        return examine(Question(model=str(folder), select=FILES)).cases[-1].requests.loads[0].class_name

    assert loader(llava) == "AutoModelForImageTextToText"
    assert loader(llama) == "AutoModelForCausalLM"


def test_a_saved_environment_is_judged_with_the_folder_that_lies_here(llama: Folder, tmp_path: Path) -> None:
    llama.remove("model.safetensors")
    saved = tmp_path / "facts.json"
    saved.write_text('{"schema": 1}', encoding="utf-8")
    assert codes(Question(model=str(llama), facts_file=str(saved), select=FILES)) == ["QD314"]


def test_the_model_of_one_load_is_not_saved_with_the_facts(llama: Folder) -> None:
    facts = examine(Question(model=str(llama), select=FILES)).facts
    assert [m.name for m in Facts.from_wire(facts.to_wire()).models] == [str(llama)]
    assert "model" not in facts.to_wire()
