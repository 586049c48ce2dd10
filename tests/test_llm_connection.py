"""What reaches an endpoint, and which way."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from fake_llm_server import FakeLLM, make_client, prompt

from llmpp_core.llm.client import Client, LLMStopped, Settings
from llmpp_core.llm.connection import connect

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SENT = {"host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "x-stainless-raw-response"}


def variables_of_the_package() -> set[str]:
    """Return the names of all environment variables that the package may read: whatever looks like one in a file that reads them."""
    texts = [path.read_text(encoding="utf-8") for path in Path(openai.__file__).parent.rglob("*.py")]
    reading = [text for text in texts if "environ" in text or "getenv" in text]
    return {name for text in reading for name in re.findall(r"""["']([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)["']""", text)}


def test_of_the_environment_only_the_named_key_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = variables_of_the_package()
    known = {"OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "OPENAI_CUSTOM_HEADERS"}
    assert known | {"OPENAI_WEBHOOK_SECRET"} <= names
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")
    headers = [f"{name}: planted-header-{name}" for name in ("Authorization", "authorization", "X-Team", "Host", "User-Agent", "Cookie")]
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "\n".join(headers))
    monkeypatch.setenv("MY_KEY", "sk-the-one-that-is-named")
    with FakeLLM() as server:
        settings = Settings("fake", server.url, key_variable="MY_KEY")
        assert Client(settings, cache=tmp_path / "c").ask([prompt(0)])[0][0].status == "answered"
        [(body, sent)] = server.calls
        assert sent["host"] == server.url.split("/")[2]
    assert set(sent) - {""} == SENT
    assert sent["authorization"] == "Bearer sk-the-one-that-is-named"
    assert body == settings.body(prompt(0))
    assert "planted" not in f"{sent} {body}"


def test_a_certificate_that_nobody_signed_is_refused_however_the_scheme_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("openssl"):
        pytest.skip("needs the command openssl, to make a certificate")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k.pem", "-out", "c.pem", "-days", "2", "-subj", "/CN=x"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    context, received = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), list[bytes]()
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")

    def pretend() -> None:
        while listener.fileno() >= 0:
            with contextlib.suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                received.append(connection.recv(4096))

    monkeypatch.setenv("MY_KEY", "sk-0123456789")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=pretend, daemon=True).start()
        for scheme in ("https", "Https"):
            url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1"
            with pytest.raises(LLMStopped, match=r"the first request failed: connection to .* failed .*(?i:certificate)"):
                make_client(url, tmp_path, key_variable="MY_KEY", retries=0).ask([prompt(0)])
    assert not any(received)


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*PROXIES, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("value", ["http://127.0.0.1:1", "socks5://127.0.0.1:1", "nonsense://h", "http://h:port"])
def test_no_proxy_of_the_environment_applies_to_this_machine(tmp_path: Path, proxies: pytest.MonkeyPatch, value: str) -> None:
    for name in PROXIES:
        proxies.setenv(name, value)
    with FakeLLM() as server:
        for host in ("127.0.0.1", "LOCALHOST"):
            client = make_client(server.url.replace("127.0.0.1", host), tmp_path, retries=0)
            assert client.ask([prompt(0)])[0][0].status == "answered"


REMOTE = Settings("m", "https://llm.invalid/v1", key_variable=None, token_cap=10**6)


@pytest.mark.parametrize("name", ["https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("value", ["nonsense://user:secret@h:1", "http://user:secret@h:port", "socks4://user:secret@h:1"])
def test_a_proxy_that_cannot_be_used_is_one_line_that_names_the_variable(
    tmp_path: Path, proxies: pytest.MonkeyPatch, name: str, value: str
) -> None:
    proxies.setenv(name, value)
    with pytest.raises(LLMStopped, match=f"the proxy in the environment variable {name} cannot be used: expected http://") as stopped:
        Client(REMOTE, cache=tmp_path / "c").ask([prompt(0)])
    assert "secret" not in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert stopped.value.__cause__ is None


def test_a_proxy_that_is_absent_or_lacks_its_package_is_named_at_once(tmp_path: Path, proxies: pytest.MonkeyPatch) -> None:
    proxies.setenv("https_proxy", "http://127.0.0.1:1")
    client = Client(REMOTE, cache=tmp_path / "c")
    with pytest.raises(LLMStopped, match=r"m at https://llm.invalid/v1: the first request failed: connection to llm.invalid:443 failed"):
        client.ask([prompt(0)])
    assert (client.counts.retries, client.budget.prompt_tokens) == (0, 0)
    proxies.setitem(sys.modules, "socksio", None)  # type: ignore[arg-type]
    proxies.setenv("https_proxy", "socks5://user:secret@127.0.0.1:1")
    with pytest.raises(LLMStopped, match="environment variable https_proxy cannot be used: SOCKS needs the package socksio"):
        client.ask([prompt(0)])
    # What is no fault of a proxy is not blamed on one.
    proxies.delenv("https_proxy")
    proxies.setattr(openai, "DefaultAsyncHttpxClient", lambda **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        connect(REMOTE, "key")


def test_a_key_that_is_missing_or_impossible_is_named_and_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    client = Client(replace(REMOTE, key_variable="MY_KEY"), cache=tmp_path / "c")
    with pytest.raises(LLMStopped, match=r"m at https://llm.invalid/v1: no key: set the environment variable MY_KEY"):
        client.ask([prompt(0)])
    for key in ("sk-0123456789\nabcdef", "sk-0123456789-é"):
        monkeypatch.setenv("MY_KEY", key)
        with pytest.raises(LLMStopped, match="the key in the environment variable MY_KEY holds white space") as stopped:
            client.ask([prompt(0)])
        assert "0123456789" not in repr(stopped.value)


def test_a_run_that_nothing_limits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="price of fake is not given: set token_cap, or price and budget"):
        make_client("https://llm.invalid/v1", tmp_path, token_cap=None).ask([prompt(0)])
