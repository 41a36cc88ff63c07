"""Writing and taking back: whole files, their modes, links, and every way in which it can go wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from qlora_doctor.errors import NewerSchema, RepairError
from qlora_doctor.repair import files, journal, lock
from qlora_doctor.repair.apply import apply_files, open_journal, undo_files
from qlora_doctor.repair.plan import FileChange

OLD = "x = 1  # 旧\r\n".encode("gbk")
NEW = "x = 2  # 旧\r\n".encode("gbk")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_bytes(OLD)
    return path


def applied(project: Path, *changes: FileChange) -> tuple[str, journal.Journal]:
    folder, entry = open_journal(str(project), changes, ["QD101"])
    apply_files(folder, entry, changes)
    return folder, entry


def test_a_file_is_written_and_comes_back_byte_for_byte(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    assert script.read_bytes() == NEW
    done = undo_files(folder, entry)
    assert (script.read_bytes(), done.restored, done.kept) == (OLD, (str(script),), ())


def test_a_file_that_was_not_there_is_gone_again(tmp_path: Path) -> None:
    new = tmp_path / "env.sh"
    folder, entry = applied(tmp_path, FileChange(str(new), None, b"export A=1\n"))
    assert new.exists()
    undo_files(folder, entry)
    assert not new.exists()


def test_the_mode_is_kept(script: Path) -> None:
    script.chmod(0o754)
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    assert stat.S_IMODE(script.stat().st_mode) == 0o754
    undo_files(folder, entry)
    assert stat.S_IMODE(script.stat().st_mode) == 0o754


def test_a_link_stays_a_link_and_its_target_is_changed(script: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(script)
    folder, entry = applied(tmp_path, FileChange(str(link), OLD, NEW))
    assert link.is_symlink()
    assert script.read_bytes() == NEW
    undo_files(folder, entry)
    assert script.read_bytes() == OLD


def test_a_file_that_changed_since_it_was_read_is_refused(script: Path) -> None:
    script.write_bytes(b"x = 3\n")
    with pytest.raises(RepairError, match="was changed since it was read"):
        open_journal(str(script.parent), [FileChange(str(script), OLD, NEW)], [])
    assert script.read_bytes() == b"x = 3\n"


def test_a_file_that_changes_between_the_journal_and_its_turn_is_refused(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_bytes(OLD)
    changes = [FileChange(str(other), OLD, NEW), FileChange(str(script), OLD, NEW)]
    folder, entry = open_journal(str(tmp_path), changes, [])
    script.write_bytes(b"mine\n")
    with pytest.raises(RepairError, match=r"Done before that: .*other\.py.*qlora-doctor undo"):
        apply_files(folder, entry, changes)
    assert (other.read_bytes(), script.read_bytes()) == (NEW, b"mine\n")
    undo_files(folder, entry)
    assert (other.read_bytes(), script.read_bytes()) == (OLD, b"mine\n")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_read_only_is_refused_before_anything_is_written(script: Path, tmp_path: Path, what: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    target = script if what == "file" else script.parent
    mode = target.stat().st_mode
    target.chmod(mode & ~0o222)
    try:
        with pytest.raises(RepairError, match="read-only"):
            open_journal(str(project), [FileChange(str(script), OLD, NEW)], [])
    finally:
        target.chmod(mode)
    assert script.read_bytes() == OLD
    assert journal.ids(str(project / ".qlora-doctor")) == []


def test_a_user_who_edited_the_file_since_keeps_it_and_gets_the_old_bytes(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    script.write_bytes(b"my own\n")
    ((path, why),) = undo_files(folder, entry).kept
    assert (path, script.read_bytes()) == (str(script), b"my own\n")
    (saved,) = Path(folder, "journal").glob("*.before.py")
    assert saved.read_bytes() == OLD
    assert str(saved) in why


def test_undo_twice_finds_everything_as_it_was(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    undo_files(folder, entry)
    assert undo_files(folder, entry).untouched == (str(script),)


def test_a_full_disk_leaves_the_old_file(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [FileChange(str(script), OLD, NEW)]
    folder, entry = open_journal(str(script.parent), changes, [])
    monkeypatch.setenv("QLORA_DOCTOR_STOP_AT", "file-0-temporary:full")
    with pytest.raises(RepairError, match="No space left on device"):
        apply_files(folder, entry, changes)
    assert script.read_bytes() == OLD
    assert [p.name for p in script.parent.iterdir() if p.name.endswith(".tmp")] == []


def test_a_journal_that_cannot_be_written_means_that_nothing_is_changed(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_DOCTOR_STOP_AT", "journal-temporary:full")
    with pytest.raises(RepairError, match="nothing was changed"):
        open_journal(str(script.parent), [FileChange(str(script), OLD, NEW)], [])
    assert script.read_bytes() == OLD


def test_a_truncated_journal_is_an_error_that_loses_nothing(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    path = Path(journal.path_of(folder, entry.id))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RepairError, match="is damaged") as caught:
        journal.read(folder, entry.id)
    assert str(path) in str(caught.value)
    assert script.read_bytes() == NEW


def test_a_newer_journal_is_an_error_with_the_way_out(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    path = Path(journal.path_of(folder, entry.id))
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "schema": 99, "new": 1}))
    with pytest.raises(NewerSchema, match="update it"):
        journal.read(folder, entry.id)


def test_an_unknown_id_names_those_that_are_there(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    with pytest.raises(RepairError, match=entry.id):
        journal.read(folder, "20200101-000000-1")


def test_a_log_that_was_cut_off_keeps_its_whole_lines(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    with open(journal.path_of(folder, entry.id, "log"), "a") as file:
        file.write('{"what": "appl')
    assert [e["what"] for e in journal.log(folder, entry.id)] == ["file-0"]
    assert journal.state(folder, entry.id) == "interrupted"


def test_a_note_after_a_line_that_was_cut_off_is_still_read(script: Path) -> None:
    folder, entry = applied(script.parent, FileChange(str(script), OLD, NEW))
    with open(journal.path_of(folder, entry.id, "log"), "a") as file:
        file.write('{"what": "appl')
    journal.note(folder, entry.id, "undone")
    assert journal.state(folder, entry.id) == "undone"


def test_two_at_once_the_second_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with lock.held(str(tmp_path)), pytest.raises(RepairError, match=f"process {os.getpid()}"), lock.held(str(tmp_path)):
        pass
    with lock.held(str(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def _hold_and_die(folder: str) -> None:
    lock._take(os.path.join(folder, "lock"))
    os._exit(9)


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(str(tmp_path),))
    process.start()
    process.join()
    assert (tmp_path / "lock").exists()
    with lock.held(str(tmp_path)):
        pass


def test_a_lock_of_another_machine_is_respected(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "1"}))
    with pytest.raises(RepairError, match="on elsewhere"), lock.held(str(tmp_path)):
        pass


def test_the_temporary_file_lies_beside_its_target(script: Path) -> None:
    assert os.path.dirname(files.temporary_of(str(script), "id")) == os.path.realpath(script.parent)
