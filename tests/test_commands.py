"""The command line: what is right works, what is wrong is one line and an exit code, and help comes at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from killing import run_interrupted
from small_book import files, small_book, write_notebook

from llmpp_book import __main__
from llmpp_book.commands.work import _pool
from llmpp_book.errors import InputError
from llmpp_book.runner.notebook import Paths
from llmpp_core import upstream
from llmpp_core.jobs.cluster import ClusterError
from llmpp_core.jobs.files import SourceError
from llmpp_core.jobs.table import JobsLost
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.search_space import HAT_WMT, TINY
from llmpp_core.tasks.registry import load_task

ROOT = Path(__main__.__file__).parents[1]
LARGEST = HAT_WMT.largest().to_hat_yaml()


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """The command line's own book is a small one."""
    paths = small_book(tmp_path / "book")
    write_notebook(paths.notebooks, "01_a")
    write_notebook(paths.notebooks, "02_b", needs=["tfs"])
    monkeypatch.setattr("llmpp_book.runner.notebook.Paths", lambda: paths)
    return paths


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    try:
        code = __main__.main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("words", [["--help"], ["searches", "--help"]])
def test_help_comes_at_once(words: list[str]) -> None:
    # Also where docstrings, which it is made of, are left out.
    command = [sys.executable, "-OO", "-X", "importtime", "-m", "llmpp_book", *words]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: llmpp")
    for library in ("numpy", "pandas", "yaml", "tqdm", "papermill"):
        assert f" {library}\n" not in shown.stderr, f"help loads {library}"


P = ["run", "01", "-p"]
TRAIN = ["train", "synthetic", "--supernet", "HAT", "--checkpoint", "c"]
WRONG = [
    (["run", "03"], "unknown notebook '03'; known are 01_a, 02_b"),
    (["run", "01", "--profile", "ful"], "unknown profile 'ful'; allowed are smoke, full"),
    ([*P, "sed=1"], "01_a has no parameter 'sed'; its parameters are profile, seed, rate"),
    *(([*P, f"seed={odd}"], f"01_a: parameter seed is '{odd}'; expected int") for odd in ("x", "[1]", "{", "0x10", "1_0", "yes")),
    *(([*P, f"seed={odd}"], f"true or false; got 'seed={odd}'") for odd in ("010", "08", "1:30")),
    ([*P, "seed"], "expected NAME=VALUE with a number, without zeros in front, text, true or false; got 'seed'"),
    ([*P, "1seed=1"], "argument -p: expected NAME=VALUE"),
    (["run", "--update", "-p", "seed=1"], "--update stores the smoke profile with default parameters only"),
    *(
        (["run", "--jobs", odd], f"argument --jobs: expected an integer, got {odd!r}")
        for odd in ("010", "1_0", "0x1", "1e1", " 1", "1.5", "")
    ),
    (["run", "--jobs", "0"], "argument --jobs: expected a positive number, got 0"),
    (["prepare", "t", "--jobs", "0"], "argument --jobs: expected a positive number, got 0"),
    (["prepare", "t", "--sample", "many"], "argument --sample: expected an integer, got 'many'"),
    (["prepare", "t"], "unknown corpus 't'; known are wmt14.en-de"),
    (["benchmark", "synthetic", "--architectures", "0"], "argument --architectures: expected a positive number, got 0"),
    (["benchmark", "synthetic", "--device", "cpuu"], "argument --device: expected cpu or cuda, got 'cpuu'"),
    *(
        (["benchmark", "synthetic", f"--minutes={odd}"], f"argument --minutes: expected a number from 0, got {odd!r}")
        for odd in ("nan", "-1", "abc", "inf", "010", "1:30", "")
    ),
    (["searches", "synthetic", "--trainings", "-1"], "argument --trainings: expected a positive number, got -1"),
    (["searches", "synthetic", "--jobs", "2", "--cluster", "local:2"], "argument --cluster: not allowed with argument --jobs"),
    ([*TRAIN, "--seed", "-1"], "argument --seed: expected a number from 0, got -1"),
    (["fetch", "tsf"], "unknown data 'tsf'; allowed are tfs, unlabelled, latency, multi30k"),
    (["describe"], "the following arguments are required: FILE.yml"),
    (["rn"], "invalid choice: 'rn'"),
    ([], "the following arguments are required: COMMAND"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_input_is_one_line_and_writes_nothing(words: list[str], message: str, book: Paths, capsys: Any) -> None:
    before = files(book.root)
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert files(book.root) == before


def test_parameters_are_read_as_values_and_never_run() -> None:
    given = {"1": 1, "-3": -3, "0.5": 0.5, ".5": 0.5, "-1e-3": -1e-3, "true": True, "False": False}
    as_they_are = ("x=y", "@cf/meta/llama-3.1-8b-instruct", "llama3:8b", "2026-01-01", "on", "nan", "!!python/object:x", "`%&*")
    for text, value in {**given, **{text: text for text in as_they_are}}.items():
        (parameter,) = __main__.parser().parse_args(["run", "-p", f"a={text}"]).parameters
        assert parameter == ("a", value)
        assert type(parameter[1]) is type(value)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("two\n lines"), 2),
        *((kind("two\n lines"), 1) for kind in (SourceError, JobsLost, ClusterError, OSError)),
        (ValueError("a bug"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_errors_are_a_line_and_an_exit_code_unless_the_program_is_at_fault(
    error: Exception, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def wrong(args: object) -> int:
        raise error

    monkeypatch.setattr(__main__, "_run", wrong)
    if code is None:
        with pytest.raises(type(error), match="a bug"):
            call(capsys, "run")
    else:
        assert call(capsys, "run") == (code, "", "two lines\n")


def test_installed_elsewhere_it_reads_the_repository_above_or_says_that_there_is_none(tmp_path: Path) -> None:
    for package in ("llmpp_core", "llmpp_book"):
        shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    # Tables are read without torch.
    code = """import sys
from llmpp_book.studies import ground_truth, search_tables
print(len(ground_truth.trainings("synthetic")), len(search_tables.searches("synthetic")), "torch" in sys.modules)"""

    def ask(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "LLMPP_BOOK"}
        environment |= {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"} | variables
        return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False)

    assert ask(ROOT / "book").stdout == ask(tmp_path, LLMPP_BOOK=str(ROOT)).stdout == "144 84 False\n"
    # A checkout's own package reads that checkout, wherever it is run, and so do its notebooks.
    assert ask(tmp_path, PYTHONPATH=str(ROOT)).stdout == "144 84 False\n"
    assert Paths().root == ROOT
    missing = ask(tmp_path).stderr.splitlines()[-1]
    assert missing.startswith(f"ValueError: {tmp_path}/results/tfs/synthetic.jsonl is not there or empty")
    assert "LLMPP_BOOK" in missing


# --- fetch --------------------------------------------------------------------------------------------------------


def test_fetch_checks_what_is_here_and_names_what_cannot_be_had(data: dict[str, Path], book: Paths, capsys: Any) -> None:
    assert call(capsys, "fetch") == (0, "2 of 2 files are here and whole\n", "")
    assert call(capsys, "fetch", "tfs", f"{upstream.GROUPS['tfs']}file")[:2] == (0, "1 of 1 files are here and whole\n")
    data["tfs"].write_text("tampered")
    data["latency"].unlink()
    # Nothing runs on damaged files.
    before = files(book.root)
    code, out, err = call(capsys, "run")
    assert (code, out, err.count("\n"), files(book.root)) == (1, "", 1, before)
    assert "is damaged: sha256 is" in err
    data["tfs"].write_text("tampered")
    code, out, err = call(capsys, "fetch")
    assert (code, out) == (1, "0 of 2 files are here and whole\n")
    damaged, absent = err.splitlines()
    assert absent == f"{upstream.GROUPS['latency']}file is not here, and its public address does not answer"
    assert "is damaged: sha256 is" in damaged


# --- describe -----------------------------------------------------------------------------------------------------


def test_describe_prints_costs_and_features(tmp_path: Path, capsys: Any) -> None:
    for space in (HAT_WMT, TINY):
        arch = space.largest()
        (tmp_path / "a.yml").write_text(arch.to_hat_yaml())
        code, out, err = call(capsys, "describe", tmp_path / "a.yml", "--space", space.name)
        assert (code, err) == (0, "")
        assert f"{count_parameters(arch, space.qkv_dim):,}" in out
        assert f"{count_flops(arch, qkv_dim=space.qkv_dim) / 1e9:.3f}" in out
        assert f"\ndecoder_ffn_dim_mean  {max(space.decoder_ffn_dims)}\n" in out
    assert len(out.splitlines()) == 13
    assert out.startswith(f"inner width of attention  {TINY.qkv_dim}\n")
    assert "inner width of attention  512, as in HAT_WMT; --space names another\n" in call(capsys, "describe", tmp_path / "a.yml")[1]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (LARGEST.replace("[8, 8, 8, 8, 8, 8]", "[8]", 1), [], "has 1 entries but encoder-layer-num"),
        (LARGEST, ["--space", "TINY"], "not in search space TINY: encoder_embed_dim is 640; allowed are 64, 48"),
        (LARGEST, ["--space", "HUGE"], "unknown search space 'HUGE'; known are HAT_WMT, HAT_IWSLT, SMALL, TINY"),
        (LARGEST.replace("[8, 8", "[3, 8", 1), [], "encoder_heads: 3 does not divide the inner width of attention, 512"),
        (LARGEST.replace("640", str(10**21), 1), [], f"encoder_embed_dim: {10**21} is more than 1,048,576, so no network"),
        (LARGEST.replace("[3072", "[51:12", 1), [], "encoder_ffn_dims: expected an integer, got '51:12'"),
        ("[" * 5000, [], ""),
        (b"\xff\xfe\x00", [], "can't decode byte"),
        (None, [], "No such file or directory"),
    ],
)
def test_describe_refuses_in_one_line(text: str | bytes | None, options: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.yml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = call(capsys, "describe", path, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# --- tasks of the user's ------------------------------------------------------------------------------------------

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
    # As the console script, which finds nothing in the working directory by itself.
    words = [sys.executable, "-P", "-m", "llmpp_book", "train", "mine", "--import", "my_tasks", "--supernet", "HAT", "--checkpoint", "net"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert re.fullmatch(r"1 process\(es\), \w+\n100 of 100 updates, .* target tokens, .*\n", done.stdout), done
    assert (tmp_path / "net").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with _pool(1, "my_tasks") as pool:
            assert pool.submit(title, "mine").result(120) == "mine"


@pytest.mark.parametrize("command", ["benchmark", "searches", "train"])
def test_a_module_that_cannot_be_imported_is_one_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_broken.py").write_text("1 / 0")
    (tmp_path / "my_empty.py").touch()
    where = "--supernet HAT --checkpoint c" if command == "train" else "--results r --checkpoints nets"
    for module, message in {
        "my_absent": "--import my_absent: ModuleNotFoundError: No module named 'my_absent'",
        "my_broken": "--import my_broken: ZeroDivisionError: division by zero",
        "my_empty": "unknown task 'ours'; known are ",
    }.items():
        code, _, err = call(capsys, command, "ours", "--import", module, *where.split())
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(message)
    assert not (tmp_path / "r").exists()


# --- interrupted --------------------------------------------------------------------------------------------------

#: Jobs that take a moment, in the pool of the commands.
SCRIPT = """
import sys, time
from llmpp_book import __main__
from llmpp_book.commands.work import _pool
from llmpp_core.jobs.table import Table

def nap(i):
    time.sleep(0.01 if i < 20 else 100)
    return {"square": i * i}

def work(args):
    with _pool(2) as pool:
        Table(sys.argv[1]).run(nap, [({"i": i}, (i,)) for i in range(400)], executor=pool)
    return 0

if __name__ == "__main__":
    __main__._fetch = work
    sys.exit(__main__.main(["fetch"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_ends_at_once_with_its_processes_and_keeps_what_is_finished(number: int, tmp_path: Path) -> None:
    began = time.monotonic()
    kept = run_interrupted(SCRIPT, tmp_path, number)
    assert sorted(kept) == list(range(20))
    assert time.monotonic() - began < 90, "a job alone takes longer"
