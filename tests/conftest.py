"""Fixtures shared by all tests, and the marker of those that need upstream files."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# The tests run side by side, one process per core; more threads would only wait for each other. Read when torch is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

from llmpp_core import upstream

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs_data(*groups): skip unless these groups of upstream files are on this machine")
    # The same examples in every run, for as long as they take: machines are shared.
    hypothesis.settings.register_profile("shared", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("shared")
    # A shell that starts the tests in the background has Ctrl-C ignored, which the processes of some tests would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs_data"):
        # Never a download: tests run without a network.
        reason = upstream.missing(marker.args, download=False)
        if reason:
            pytest.skip(reason)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A data folder with one whole file for each of two groups; the cache is empty and there is no network."""
    found, registry = {}, {}
    for group in ("tfs", "latency"):
        name = f"{upstream.GROUPS[group]}file"
        found[group] = tmp_path / "data" / name
        found[group].parent.mkdir(parents=True)
        found[group].write_text(group)
        registry[name] = (hashlib.sha256(group.encode()).hexdigest(), len(group))
    monkeypatch.setattr(upstream, "registry", lambda: registry)
    monkeypatch.setattr(upstream, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(upstream, "online", lambda: False)
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path / "data"))
    return found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    executable = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip("no Chromium on the PATH; install one or name it in CHROMIUM")
    quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def serve() -> Iterator[object]:
    """Return a function that serves a folder on this machine and returns its address."""
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield functools.cache(start)
    for server in servers:
        server.shutdown()
        server.server_close()
