"""Commands that take long, with a task of the user's own, and interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_nets import run_interrupted

from llmpp_book.__main__ import main
from llmpp_book.commands.work import _pool
from llmpp_book.studies import ground_truth as benchmark
from llmpp_core.tasks.registry import load_task

#: A module of a user's: a task that is learnt in no time.
MODULE = """
from llmpp_core.space.search_space import TINY
from llmpp_core.tasks.registry import register
from llmpp_core.tasks.task import Task
from llmpp_core.nets.training import Recipe

@register("mine")
def mine():
    text = (["a dog sleeps", "the dog runs", "a cat runs"] * 30, ["ein Hund schläft", "der Hund läuft", "eine Katze läuft"] * 30)
    recipe = Recipe(updates=100, batch_tokens=100, learning_rate=3e-3, dropout=0.0)
    return Task.from_text("mine", train=text, valid=text, test=text, space=TINY, recipe=recipe, supernet_recipe=recipe, subwords=60)
"""


def title(name: str) -> str:
    return load_task(name).title


def test_a_module_of_the_users_brings_a_task_to_every_process(tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(MODULE)
    words = ["train", "mine", "--import", "my_tasks", "--supernet", "HAT", "--checkpoint", "net"]
    root = str(Path(benchmark.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "llmpp_book", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert re.fullmatch(r"1 process\(es\), \w+\n100 of 100 updates, .* target tokens, .*\n", done.stdout), done
    assert (tmp_path / "net").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with _pool(1, "my_tasks") as pool:
            assert pool.submit(title, "mine").result(60) == "mine"


@pytest.mark.parametrize(
    ("module", "text", "message"),
    [
        ("my_absent", None, "--import my_absent: ModuleNotFoundError: No module named 'my_absent'"),
        ("my_broken", "1 / 0", "--import my_broken: ZeroDivisionError: division by zero"),
        ("my_empty", "", "unknown task 'ours'; known are "),
        ("not/a.module", None, "--import not/a.module: ModuleNotFoundError: No module named"),
    ],
)
@pytest.mark.parametrize("command", [["benchmark"], ["searches"], ["train", "--supernet", "HAT"]], ids=lambda words: words[0])
def test_a_module_that_cannot_be_imported_is_one_line(
    module: str,
    text: str | None,
    message: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    if text is not None:
        (tmp_path / f"{module}.py").write_text(text)
    where = ["--checkpoint", str(tmp_path / "c")] if command[0] == "train" else ["--results", str(tmp_path / "r")]
    assert main([*command, "ours", "--import", module, *where]) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("minutes", ["nan", "-1", "abc", "inf", "010", "1:30", ""])
def test_a_time_that_is_none_is_refused(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", "synthetic", "--minutes", minutes])
    assert f"argument --minutes: expected a number from 0, got {minutes!r}" in capsys.readouterr().err


def test_a_device_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "synthetic", "--device", "cpuu"]) == 2
    assert capsys.readouterr().err == "--device: expected cpu or cuda, got 'cpuu'\n"


#: Jobs that take a moment, in the pool of the commands.
SCRIPT = """
import sys, time
from pathlib import Path
from llmpp_book import __main__
from llmpp_core.jobs import table as jobs
from llmpp_book.commands.work import _pool

def nap(i):
    time.sleep(0.01 if i < 20 else 100)
    return {"square": i * i}

def work(args):
    with _pool(2) as pool:
        jobs.run_jobs(nap, [({"i": i}, (i,)) for i in range(3000)], Path(sys.argv[1]), executor=pool)
    return 0

if __name__ == "__main__":
    __main__._fetch = work
    sys.exit(__main__.main(["fetch"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_ends_at_once_with_its_processes_and_keeps_what_is_finished(number: int, tmp_path: Path) -> None:
    # A job alone takes longer than this waits.
    kept = run_interrupted(SCRIPT, tmp_path, number)
    assert sorted(kept) == list(range(20))
