"""The examination: what it asks of the network, and what a model alone is judged as."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_doctor.collect import environ_of
from qlora_doctor.examine import Question, examine, known_parts, model_load
from qlora_doctor.facts import Gpu
from qlora_doctor.judge import Case
from qlora_doctor.source import Dotted, EnvironWrite, Script
from qlora_doctor.testing import facts


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A Hub on this machine, named by HF_ENDPOINT; the list of the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b'{"id": "a/b"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_network_is_asked_once_where_a_model_comes_from_the_hub(hub: list[str]) -> None:
    found = examine(Question(model="Qwen/Qwen3-0.6B", select=("QD2",)))
    assert len(hub) == 1
    assert found.facts.hub.reachable is True


@pytest.mark.parametrize(
    "question",
    [
        Question(select=("QD2",)),
        Question(model="Qwen/Qwen3-0.6B", select=("QD2",), offline=True),
        Question(model="Qwen/Qwen3-0.6B", select=("QD101",)),
        Question(model=".", select=("QD2",)),
    ],
    ids=["nothing is loaded", "offline", "no check asks", "a local folder"],
)
def test_the_network_is_left_alone_where_nothing_needs_it(hub: list[str], question: Question) -> None:
    examine(question)
    assert hub == []


def test_only_the_facts_that_the_selected_checks_need_are_gathered() -> None:
    assert known_parts(examine(Question(select=("QD201",))).facts) == ("environ",)


def test_a_mirror_that_the_script_sets_before_its_imports_is_the_one_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://first.example")

    def endpoint(*writes: EnvironWrite) -> str:
        return environ_of([Case(script=Script("train.py", environ=writes))])["HF_ENDPOINT"]

    assert endpoint(EnvironWrite("HF_ENDPOINT", "https://mirror.example")) == "https://mirror.example"
    late = EnvironWrite("HF_ENDPOINT", "https://mirror.example", after_imports=("torch", "transformers"))
    assert endpoint(late) == "https://first.example"
    assert endpoint(EnvironWrite("HF_ENDPOINT", "https://x.example", default_only=True)) == "https://first.example"
    assert endpoint(EnvironWrite("HF_ENDPOINT", Dotted("settings.MIRROR"))) == "https://first.example"


def test_the_load_of_a_model_alone_gives_every_dtype_in_the_words_of_the_installed_transformers() -> None:
    t4 = Gpu("Tesla T4", "7.5")
    old = model_load("Qwen/Qwen3-0.6B", facts({"transformers": "4.44.2"}, gpus=(t4,)))
    assert old.call.arguments["torch_dtype"] == Dotted("torch.float16")
    new = model_load("llava-hf/llava-1.5-7b-hf", facts({"transformers": "4.56.0"}, gpus=()))
    assert new.call.arguments["dtype"] == Dotted("torch.bfloat16")
    assert new.class_name == "AutoModelForImageTextToText"
    assert new.quantization is not None
    assert new.quantization.bits == 4
