"""What one bounded request to the Hub's address gives, against real sockets on this machine."""

from __future__ import annotations

import socket
import ssl
import threading
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_doctor.gather.hub import classify, reach
from qlora_doctor.gather.hub_cache import cached_models

Answer = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server whose connections are answered by a function; gives its address."""
    listeners: list[socket.socket] = []
    done = threading.Event()

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    answer(connection)

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    done.set()
    for listener in listeners:
        listener.close()


def saying(status: str, body: str, kind: str = "application/json", requests: list[bytes] | None = None) -> Answer:
    def answer(connection: socket.socket) -> None:
        got = connection.recv(65536)
        if requests is not None:
            requests.append(got)
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.sendall((head + body).encode())

    return answer


def test_a_hub_that_answers_in_json_is_reachable(serve: Callable[[Answer], str]) -> None:
    endpoint = serve(saying("200 OK", '{"id": "a/b"}'))
    hub = reach({"HF_ENDPOINT": endpoint + "/"}, models=("a/b",))
    assert (hub.reachable, hub.failure, hub.endpoint, hub.source, hub.asked) == (
        True,
        "",
        endpoint,
        "HF_ENDPOINT",
        ("a/b",),
    )


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found"])
def test_a_hub_that_refuses_in_json_is_there_all_the_same(serve: Callable[[Answer], str], status: str) -> None:
    assert reach({"HF_ENDPOINT": serve(saying(status, '{"error": "no"}'))}, models=("a/b",)).reachable is True


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        ("503 Service Unavailable", "{}", "http 503"),
        ("404 Not Found", "<html>", "http 404"),
        ("200 OK", "<html>please log in</html>", "not json"),
        ("200 OK", "", "not json"),
        ("429 Too Many Requests", "{}", "http 429"),
    ],
)
def test_an_answer_that_is_no_hub(serve: Callable[[Answer], str], status: str, body: str, failure: str) -> None:
    hub = reach({"HF_ENDPOINT": serve(saying(status, body))})
    assert (hub.reachable, hub.failure) == (False, failure)


def test_a_port_where_nothing_listens_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    hub = reach({"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
    assert (hub.reachable, hub.failure) == (False, "refused")


def test_a_connection_that_is_cut_is_a_reset(serve: Callable[[Answer], str]) -> None:
    assert reach({"HF_ENDPOINT": serve(lambda connection: None)}).failure == "reset"


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n"])
def test_a_server_that_hangs_or_drips_is_given_up_at_the_deadline(serve: Callable[[Answer], str], first: bytes) -> None:
    released = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(40):
            if released.wait(0.05):
                return
            if first:
                connection.sendall(b" ")

    hub = reach({"HF_ENDPOINT": serve(answer)}, timeout=0.3)
    released.set()
    assert (hub.reachable, hub.failure) == (False, "timeout")


def test_a_server_that_speaks_no_tls_is_a_tls_failure(serve: Callable[[Answer], str]) -> None:
    endpoint = serve(saying("400 Bad Request", "plain")).replace("http:", "https:")
    assert reach({"HF_ENDPOINT": endpoint}).failure == "tls"


def test_a_proxy_that_is_down_is_the_proxys_failure(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert reach({"HF_ENDPOINT": "http://mirror.example.invalid"}).failure == "proxy refused"
    monkeypatch.setenv("http_proxy", serve(saying("407 Proxy Authentication Required", "")))
    assert reach({"HF_ENDPOINT": "http://mirror.example.invalid"}).failure == "proxy password"


def test_a_socks_proxy_is_not_tried_and_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    assert reach({"HF_ENDPOINT": "http://mirror.example.invalid"}).reachable is None


def test_no_token_is_sent(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    requests: list[bytes] = []
    reach({"HF_ENDPOINT": serve(saying("200 OK", "{}", requests=requests)), "HF_TOKEN": "hf_secret"})
    assert len(requests) == 1
    assert b"hf_secret" not in requests[0]
    assert b"uthorization" not in requests[0]


@pytest.mark.parametrize("given", [{"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "yes"}, {}])
def test_offline_nothing_is_asked(serve: Callable[[Answer], str], given: dict[str, str]) -> None:
    requests: list[bytes] = []
    endpoint = serve(saying("200 OK", "{}", requests=requests))
    hub = reach({"HF_ENDPOINT": endpoint, **given}, offline=not given)
    assert (hub.offline, hub.reachable, requests) == (True, None, [])


@pytest.mark.parametrize("value", ["mirror.example", "ftp://mirror.example", '"https://mirror.example"', "https:// a"])
def test_what_is_no_address_is_not_asked(value: str) -> None:
    assert reach({"HF_ENDPOINT": value}).reachable is None


def test_a_password_in_the_address_is_not_kept() -> None:
    hub = reach({"HF_ENDPOINT": "https://me:secret@mirror.example.invalid"}, offline=True)
    assert "secret" not in hub.endpoint


def test_without_the_variable_the_default_is_meant() -> None:
    hub = reach({}, offline=True)
    assert (hub.source, hub.endpoint.startswith("https://")) == ("default", True)


def test_a_name_that_does_not_resolve_and_a_certificate_are_told_apart() -> None:
    assert classify(urllib.error.URLError(socket.gaierror(-2, "Name or service not known")))[0] == "dns"
    assert classify(urllib.error.URLError(ssl.SSLCertVerificationError("self-signed")))[0] == "tls"
    assert classify(OSError("Tunnel connection failed: 403 Forbidden"))[0] == "proxy"


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_cached_models_are_those_with_a_snapshot(tmp_path: Path, variable: str) -> None:
    root = {"HF_HOME": tmp_path / "hub", "XDG_CACHE_HOME": tmp_path / "huggingface" / "hub"}.get(variable, tmp_path)
    snapshot = root / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (root / "models--gpt2" / "snapshots" / "abc").mkdir(parents=True)
    (root / "datasets--a--b" / "snapshots").mkdir(parents=True)
    assert cached_models({variable: str(tmp_path)}) == ("Qwen/Qwen3-0.6B",)


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert cached_models({"HF_HUB_CACHE": str(tmp_path / "none")}) == ()
