"""What a path on the command line is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qlora_doctor.errors import UnknownArgument, UsageError
from qlora_doctor.gather import targets
from qlora_doctor.gather.targets import find_target, read_targets

SCRIPT = "import transformers\nmodel = transformers.AutoModel.from_pretrained('a')\n"


def fill(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_folder_gives_its_scripts_and_no_others(tmp_path: Path) -> None:
    fill(
        tmp_path,
        a_py=SCRIPT,
        src__b_py=SCRIPT,
        plain_py="print('nothing of the stack')\n",
        site_packages__c_py=SCRIPT,
        **{".venv__d_py": SCRIPT, "build__e_py": SCRIPT, "my-env__pyvenv.cfg": "", "my-env__f_py": SCRIPT},
    )
    (tmp_path / "site_packages").rename(tmp_path / "site-packages")
    found = [os.path.relpath(s.path, tmp_path) for s, _ in read_targets([str(tmp_path)])]
    assert found == ["a.py", os.path.join("src", "b.py")]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    fill(tmp_path, a_py=SCRIPT)
    assert len(read_targets([str(tmp_path), str(tmp_path / "a.py")])) == 1


def test_a_script_is_read_with_what_it_asks_for(tmp_path: Path) -> None:
    fill(tmp_path, a_py=SCRIPT)
    ((script, requests),) = read_targets([str(tmp_path / "a.py")])
    assert script.kind == "python"
    assert requests.loads[0].model == "a"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["adapter_config.json"], "adapter"),
        (["trainer_state.json", "adapter.bin"], "checkpoint"),
        (["config.json", "model.safetensors"], "model"),
        (["adapter_config.json", "trainer_state.json"], "adapter"),
    ],
)
def test_folders_of_models_are_told_apart(tmp_path: Path, files: list[str], kind: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    target = find_target(str(tmp_path))
    assert target.kind == kind and target.note and not target.scripts


def test_a_model_and_an_adapter_are_loads_of_which_only_the_name_is_known(tmp_path: Path) -> None:
    for name in ("model", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    (tmp_path / "data.jsonl").write_text("{}")
    paths = [str(tmp_path / name) for name in ("model", "adapter", "data.jsonl")]
    model, adapter, data = read_targets(paths)
    assert [s.kind for s, _ in (model, adapter, data)] == ["model", "adapter", "data"]
    assert [one.model for _, r in (model, adapter, data) for one in r.loads] == [paths[0], "a/b"]
    assert all(s.note for s, _ in (model, adapter, data))
    with pytest.raises(UnknownArgument):
        model[1].loads[0].call.has("dtype")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"base_model_name_or_path": null}', "[" * 100_000])
def test_a_broken_adapter_configuration_is_no_request(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    ((script, requests),) = read_targets([str(tmp_path)])
    assert script.kind == "adapter" and requests.loads == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.py", "script"), ("a.ipynb", "notebook"), ("a.yaml", "config"), ("a.toml", "config"), ("a.jsonl", "data")],
)
def test_files_are_told_apart_by_their_names(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_text("")
    assert find_target(str(tmp_path / name)).kind == kind


def test_a_script_without_a_suffix_is_known_by_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("#!/usr/bin/env python3\n" + SCRIPT)
    assert find_target(str(tmp_path / "train")).kind == "script"


@pytest.mark.parametrize(
    ("files", "asked", "words"),
    [
        ({"train.py": SCRIPT}, "trian.py", ["no such file", "did you mean", "train.py"]),
        ({}, "", ["holds no Python files", "name a folder"]),
        ({"a.py": "print(1)\n"}, "", ["mentions transformers", "name a folder"]),
        ({"a.exe": "x"}, "a.exe", ["nothing that can be judged", ".py"]),
        ({}, "absent/deep/x.py", ["no such file"]),
        ({}, "nul\0byte", ["no such file"]),
    ],
)
def test_a_path_with_nothing_to_judge_says_what_to_do(
    tmp_path: Path, files: dict[str, str], asked: str, words: list[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_targets([str(tmp_path / asked)])
    for word in words:
        assert word in str(caught.value)


def test_only_so_many_scripts_of_a_folder_are_read_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "MAX_SCRIPTS", 3)
    for index in range(5):
        (tmp_path / f"s{index}.py").write_text(SCRIPT)
    target = find_target(str(tmp_path))
    assert len(target.scripts) == 3
    assert "first 3" in target.note
    assert "first 3" in read_targets([str(tmp_path)])[-1][0].note


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_a_link_that_goes_round_in_a_circle_is_not_followed(tmp_path: Path) -> None:
    fill(tmp_path, a_py=SCRIPT)
    os.symlink(tmp_path, tmp_path / "again", target_is_directory=True)
    assert len(read_targets([str(tmp_path)])) == 1
