"""`report` bundles what a bug report needs, with the same bytes each time, and nothing in it tells a secret."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_doctor import redaction
from qlora_doctor.bundle.contents import contents
from qlora_doctor.bundle.write import archive
from qlora_doctor.examine import Question

LOWER = "abcdefghijklmnopqrstuvwxyz"
ALNUM = LOWER + LOWER.upper() + "0123456789"


def words(alphabet: str, low: int, high: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=low, max_size=high)


OPAQUE = words(ALNUM, 20, 40).map(lambda s: "q9" + s)
# What is planted, and the part of it that must be gone. The part is `{}` in the form in which it stands in a log.
SECRETS = st.one_of(
    OPAQUE.map(lambda s: ("hf_" + s, s)),
    OPAQUE.map(lambda s: ("ghp_" + s, s)),
    OPAQUE.map(lambda s: ("sk-" + s, s)),
    words("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 16, 16).map(lambda s: ("AKIA" + s, s)),
    OPAQUE.map(lambda s: (f"HF_TOKEN={s}", s)),
    OPAQUE.map(lambda s: (f"export WANDB_API_KEY='{s}'", s)),
    OPAQUE.map(lambda s: (f"MY_CORP_PASSWORD: {s}", s)),
    OPAQUE.map(lambda s: (f"--token {s}", s)),
    OPAQUE.map(lambda s: (f"from_pretrained(name, token='{s}')", s)),
    OPAQUE.map(lambda s: (json.dumps({"api_key": s}), s)),
    OPAQUE.map(lambda s: (f"Authorization: Bearer {s}", s)),
    OPAQUE.map(lambda s: (f"https://host.example/x?X-Amz-Signature={s}&a=1", s)),
    OPAQUE.map(lambda s: (f"http://name:{s}@proxy:3128/", s)),
    OPAQUE.map(lambda s: (f"-----BEGIN PRIVATE KEY-----\n{s}\n-----END PRIVATE KEY-----", s)),
    OPAQUE.map(lambda s: (f"wandb login {s}", s)),
)
NAMES = words(LOWER, 5, 10).map(lambda s: "zq" + s)
PRIVATE = st.one_of(
    NAMES.map(lambda s: (f'File "/home/{s}/train.py", line 3', s)),
    NAMES.map(lambda s: (f"C:\\Users\\{s}\\model", s)),
    NAMES.map(lambda s: (f"/Users/{s}/x and then {s} again", s)),
    NAMES.map(lambda s: (f"https://{s}.corp.internal:8080/simple", s)),
    NAMES.map(lambda s: (f"{s}:123:456 [0] NCCL INFO Bootstrap", s)),
    NAMES.map(lambda s: (f"MASTER_ADDR={s}", s)),
    NAMES.map(lambda s: (f"me@{s}:~$ python train.py", s)),
    NAMES.map(lambda s: (f"mail to {s}@corp.example.org", s)),
    st.tuples(st.integers(1, 126), *[st.integers(0, 255)] * 3).map(lambda t: ".".join(map(str, t))).map(lambda s: (f"connect to {s}:29500", s)),
    st.just(("listen on fe80::1ff:fe23:4567:890a", "fe80::1ff:fe23:4567:890a")),
    st.uuids().map(lambda u: (f"GPU-{u}", str(u))),
    words("0123456789", 9, 13).map(lambda s: (f"Serial Number : {s}", s)),
)  # fmt: skip
AROUND = st.sampled_from(["", "ERROR: ", "[rank0]: ", "{'loss': 1.2} ", "训练 "])


@settings(max_examples=300, deadline=None)
@given(SECRETS, AROUND, st.sampled_from(["", " done", "\nnext line"]))
def test_no_secret_of_any_kind_is_left_even_where_places_may_stay(
    planted: tuple[str, str], before: str, after: str
) -> None:
    text, secret = planted
    assert secret not in redaction.secrets(before + text + after)


@settings(max_examples=300, deadline=None)
@given(st.one_of(SECRETS, PRIVATE), AROUND)
def test_nothing_that_tells_who_and_where_is_left_in_what_is_sent(planted: tuple[str, str], before: str) -> None:
    text, told = planted
    assert told not in redaction.private(before + text, redaction.users_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "pad_token='</s>', eos_token_id: 2, tokens: 512, token=True, KeyError: 'token'",
        "nvidia-cudnn-cu12==9.1.0.70 torch-2.13.0+cpu 10:20:30 at::native::add c10::Error",
        "https://huggingface.co/Qwen/Qwen3-0.6B/resolve/main/config.json",
        "trainable params: 4,194,304 || all params: 7,066,619,904",
        "127.0.0.1:29500 and 0.0.0.0 and localhost",
        "/usr/lib/python3.11/site-packages/torch/nn/modules/module.py",
    ],
)
def test_what_a_reader_needs_stays(text: str) -> None:
    assert redaction.private(text) == text


FACTS = {
    "schema": 1,
    "packages": {"distributions": [{"name": "torch", "version": "2.13.0"}, {"name": "nvidia-cudnn-cu12", "version": "9.1.0.70"}]},
    "environ": {"HF_TOKEN": "q9plainsecretvalue", "HTTPS_PROXY": "http://me:q9pass@proxy.corp.internal:80"},
    "interpreter": {"version": "3.11.7", "executable": "/home/zqliwei/venv/bin/python"},
}  # fmt: skip
LOG = "epoch 1\n/home/zqliwei/train.py: zqliwei\nlogin with hf_q9abcdefghijklmnop\nRuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n"
SCRIPT = "from transformers import AutoModelForCausalLM\nm = AutoModelForCausalLM.from_pretrained('gpt2', token='q9inthescript')\n"


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    (tmp_path / "f.json").write_text(json.dumps(FACTS), encoding="utf-8")
    (tmp_path / "x.log").write_text(LOG, encoding="utf-8")
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path, ("report", "--log", "x.log", "--script", "train.py", "--facts", "f.json")


def doctor(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qlora_doctor", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_archive_holds_every_part_has_the_same_bytes_twice_and_no_secret(run: tuple[Path, tuple[str, ...]]) -> None:
    folder, words = run
    assert doctor(folder, *words, "--output", "a.zip").returncode == 0
    assert doctor(folder, *words, "--output", "b.zip").returncode == 0
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()
    with zipfile.ZipFile(folder / "a.zip") as packed:
        texts = {name: packed.read(name).decode("utf-8") for name in packed.namelist()}
    assert set(texts) == {
        "README.md", "configuration/train.py", "facts.json", "findings.json", "fixes-tried.json", "log-tail.txt", "requests.json",
    }  # fmt: skip
    everything = "\n".join(texts.values())
    assert [s for s in ("q9", "zqliwei", "proxy.corp") if s in everything] == []
    assert "CUDA out of memory" in texts["log-tail.txt"]
    assert '"9.1.0.70"' in texts["facts.json"]


def test_the_fixes_that_were_tried_are_named_without_the_contents_of_files(run: tuple[Path, tuple[str, ...]]) -> None:
    folder, words = run
    (folder / ".git").mkdir()
    (folder / "train.py").write_text(
        "from transformers import Trainer, TrainingArguments\n"
        "Trainer(model=model, args=TrainingArguments(output_dir='o')).train()\n",
        encoding="utf-8",
    )
    (folder / "grad.log").write_text("None of the inputs have requires_grad=True\n", encoding="utf-8")
    fix = ("fix", "train.py", "--from-log", "grad.log", "--unsafe", "--apply", "--offline", "--select", "QD102")
    assert doctor(folder, *fix).returncode == 0
    doctor(folder, *words, "--output", "out")
    tried = json.loads((folder / "out" / "fixes-tried.json").read_text("utf-8"))
    assert [(t["state"], t["codes"], t["files"]) for t in tried] == [("applied", ["LOG001"], ["train.py"])]


def test_a_folder_that_holds_other_files_is_not_written_into(run: tuple[Path, tuple[str, ...]]) -> None:
    folder, words = run
    done = doctor(folder, *words, "--output", ".")
    assert (done.returncode, "holds other files" in done.stderr) == (2, True)


def test_a_log_that_is_not_there_is_a_mistake_of_the_question(run: tuple[Path, tuple[str, ...]]) -> None:
    done = doctor(run[0], "report", "--log", "absent.log", "--facts", "f.json")
    assert (done.returncode, "--log absent.log: No such file" in done.stderr) == (2, True)


def test_json_reports_hold_no_secret(run: tuple[Path, tuple[str, ...]]) -> None:
    folder, _ = run
    report = doctor(
        folder, "check", "train.py", "--facts", "f.json", "--offline", "--format", "json", "--verbose"
    ).stdout
    assert json.loads(report)["facts"]["interpreter"]["version"] == "3.11.7"
    assert "q9" not in report
    diagnosis = doctor(folder, "diagnose", "x.log", "--elsewhere", "--format", "json").stdout
    assert json.loads(diagnosis)["diagnoses"] != []
    assert "q9" not in diagnosis


def test_the_record_of_a_run_holds_no_secret_of_its_command(tmp_path: Path) -> None:
    code = "import sys; sys.exit('RuntimeError: bad token hf_q9abcdefghijklmnop')"
    done = doctor(tmp_path, "run", "--", sys.executable, "-c", code, "--token", "q9thisissecret123")
    assert done.returncode == 1
    assert "q9" not in (tmp_path / "qlora-doctor-run.json").read_text("utf-8")


def test_the_contents_alone_make_the_archive(
    run: tuple[Path, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run[0])
    files = contents(Question(paths=("train.py",), facts_file="f.json"), "x.log").files
    assert archive(dict(reversed(list(files.items())))) == archive(files)
