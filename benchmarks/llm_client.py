"""Labelling throughput: the client against one request at a time, on a server that takes 300 ms per answer.

``python benchmarks/llm_client.py`` starts the server in a process of its own, so that the CPU time counted is the client's.
One at a time is measured on a sample of the requests and scaled to all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openai

from llmpp_book.studies.questions import WMT_TASKS
from llmpp_core.llm.client import Client, Settings
from llmpp_core.llm.prompts import build_prompt
from llmpp_core.space.search_space import HAT_WMT

SERVER = Path(__file__).resolve().parents[1] / "tests" / "fake_llm_server.py"


def one_at_a_time(settings: Settings, prompts: list) -> float:
    """Return the seconds that a plain loop over the openai package takes."""
    client = openai.OpenAI(base_url=settings.base_url, api_key="none", max_retries=0)
    started = time.perf_counter()
    for prompt in prompts:
        float(client.chat.completions.create(**settings.body(prompt)).choices[0].message.content)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--sample", type=int, default=40, help="requests asked one at a time")
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds per answer")
    arguments = parser.parse_args()
    archs = HAT_WMT.sample_balanced(arguments.requests + 10, np.random.default_rng(0))
    demonstrations = [(arch, 25.0) for arch in archs[:10]]
    prompts = [build_prompt(WMT_TASKS["wmt14ende"], demonstrations, [arch]) for arch in archs[10:]]
    server = subprocess.Popen([sys.executable, SERVER, "--latency", str(arguments.latency)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        settings = Settings(
            "fake", server.stdout.readline().strip(), key_variable=None, token_cap=10**10, concurrency=arguments.concurrency
        )
        slow = one_at_a_time(settings, prompts[: arguments.sample]) * len(prompts) / arguments.sample
        with tempfile.TemporaryDirectory() as folder:
            client = Client(settings, cache=Path(folder) / "cache.sqlite3")
            cpu, started = time.process_time(), time.perf_counter()
            answers = client.ask(prompts)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            started = time.perf_counter()
            assert client.ask(prompts) == answers
            again = time.perf_counter() - started
    finally:
        server.terminate()
    report = {
        "requests": len(prompts),
        "answered": sum(answer.status == "answered" for (answer,) in answers),
        "concurrency": arguments.concurrency,
        "one_at_a_time_s": round(slow, 1),
        "one_at_a_time_measured_on": arguments.sample,
        "client_s": round(seconds, 2),
        "speedup": round(slow / seconds, 1),
        "requests_per_s": round(len(prompts) / seconds, 1),
        "client_cpu_ms_per_request": round(1e3 * cpu / len(prompts), 2),
        "from_cache_s": round(again, 2),
        "cpu_count": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
