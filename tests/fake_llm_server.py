"""A Chat Completions server on loopback that misbehaves on request; helper of the tests and of benchmarks/llm_client.py.

``python tests/fake_llm_server.py --latency 0.3`` prints its URL and answers every prompt after 0.3 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.prompts import Prompt


@dataclass
class Act:
    """What the server does with one call: sends something, or `how` says which way it fails to."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    how: str = "send"  # or reset, truncate, hang, drip


def completion(text: str | None = "25.30", finish: str = "stop", usage: Any = "plausible", prompt: str = "") -> dict[str, Any]:
    """Return the body of a reply; its prompt tokens are plausible unless `usage` is given (None leaves it out)."""
    if usage == "plausible":
        usage = {"prompt_tokens": len(prompt.encode()) // 3 + 20, "completion_tokens": 4}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = {"id": "x", "model": "fake", "choices": [choice]}
    return body if usage is None else {**body, "usage": usage}


def ok(body: dict[str, Any], number: int) -> Act:
    """Answer every prompt with a number that depends on the prompt alone."""
    text = body["messages"][0]["content"]
    return Act(body=completion(answer_to(text), prompt=text))


def answer_to(text: str) -> str:
    return f"{20 + len(text) % 7 + sum(text.encode()) % 100 / 100:.2f}"


def prompt(i: int, prefix: str = "shared words " * 5) -> Prompt:
    """Return the i-th of many prompts with a common prefix."""
    return Prompt(prefix, f"number {i}", "single", 1, 0.0, 100.0)


def make_client(url: str, folder: Path, **changes: Any) -> Client:
    """Return a client whose settings limit it to a billion tokens, apart from changes, with its cache in a folder."""
    settings = {"base_url": url, "key_variable": None, "token_cap": 10**9, "backoff": 0.001, "deadline": 60.0, "retries": 3} | changes
    return Client(Settings("fake", **settings), cache=folder / "c")


def act_on(numbers: Any, act: Act) -> Callable[[dict[str, Any], int], Act]:
    """Return a script that acts so on the prompts of these numbers and answers the others."""
    return lambda body, number: act if int(body["messages"][0]["content"].rsplit(" ", 1)[1]) in numbers else ok(body, number)


class FakeLLM:
    """The server, in a thread of its own.

    Given a request's body and the number of calls with the same body before it, `script` says how to `Act`, `latency` seconds later.
    """

    def __init__(self, script: Callable[[dict[str, Any], int], Act] = ok, latency: float = 0.0, port: int = 0):
        self.script, self.latency = script, latency
        self.calls: list[tuple[dict[str, Any], dict[str, str]]] = []  #: Bodies and headers, in order of arrival.
        self.times: list[float] = []  #: When they arrived, by time.monotonic.
        self.sent: list[str] = []  #: The prompts whose replies were sent whole.
        self.in_flight = self.most_in_flight = 0  #: Requests that are, or were, being answered at once.
        self._repeats: dict[str, int] = {}
        self._port = port

    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body, _ in self.calls]

    def __enter__(self) -> FakeLLM:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(started)), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5)

    async def _main(self, started: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1000)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started.set()
        await self._end.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        body = json.loads(raw) if raw else {}
        same = raw.decode()
        number = self._repeats[same] = self._repeats.get(same, -1) + 1
        self.calls.append((body, headers))
        self.times.append(time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            act = self.script(body, number)
            return await self._perform(act, body, writer)
        finally:
            self.in_flight -= 1

    async def _perform(self, act: Act, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if act.how == "hang":
            await self._end.wait()
        if act.how == "reset":
            writer.transport.abort()
            return False
        data = act.body if isinstance(act.body, bytes) else json.dumps(act.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **act.headers}
        head = f"HTTP/1.1 {act.status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        if act.how == "truncate":
            writer.write(head.encode() + data[: len(data) // 2])
            await writer.drain()
            return False
        writer.write(head.encode())
        if act.how == "drip":
            for byte in data:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        if act.status == 200 and act.how == "send" and isinstance(act.body, dict) and act.body.get("choices"):
            self.sent.append(body["messages"][0]["content"])
        writer.write(data)
        await writer.drain()
        return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    server = FakeLLM(latency=parser.parse_args().latency)
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
