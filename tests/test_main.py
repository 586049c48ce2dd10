"""The command line: what is right works, what is wrong is one line and an exit code, and help comes at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_book import files, small_book, write_notebook

from llmpp_book import __main__
from llmpp_book.runner.notebook import Paths
from llmpp_core import upstream as sources
from llmpp_core.space.cost import count_flops, count_parameters
from llmpp_core.space.search_space import HAT_WMT, TINY

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


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["fetch", "--help"], ["describe", "--help"]])
def test_help_comes_at_once(words: list[str]) -> None:
    begin = time.monotonic()
    shown = subprocess.run([sys.executable, "-X", "importtime", "-m", "llmpp_book", *words], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: llmpp")
    assert time.monotonic() - begin < 5
    for library in ("numpy", "pandas", "yaml", "tqdm", "papermill"):
        assert f" {library}\n" not in shown.stderr, f"help loads {library}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "03"], "unknown notebook '03'; known are 01_a, 02_b"),
        (["run", "01", "--profile", "ful"], "unknown profile 'ful'; allowed are smoke, full"),
        (["run", "01", "-p", "sed=1"], "01_a has no parameter 'sed'; its parameters are profile, seed, rate"),
        (["run", "01", "-p", "seed=x"], "01_a: parameter seed is 'x'; expected int as in its default 0"),
        (
            ["run", "01", "-p", "seed"],
            "expected NAME=VALUE with a number, without zeros in front, text, true or false; got 'seed'",
        ),
        (["run", "01", "-p", "1seed=1"], "argument -p: expected NAME=VALUE"),
        (["run", "01", "-p", "seed=[1]"], "01_a: parameter seed is '[1]'; expected int as in its default 0"),
        (["run", "01", "-p", "seed={"], "01_a: parameter seed is '{'; expected int as in its default 0"),
        (["run", "01", "-p", "seed=0x10"], "01_a: parameter seed is '0x10'; expected int as in its default 0"),
        (["run", "01", "-p", "seed=1_0"], "01_a: parameter seed is '1_0'; expected int as in its default 0"),
        (["run", "01", "-p", "seed=yes"], "01_a: parameter seed is 'yes'; expected int as in its default 0"),
        *((["run", "01", "-p", f"seed={odd}"], f"true or false; got 'seed={odd}'") for odd in ("010", "08", "1:30")),
        (["run", "--jobs", "0"], "--jobs is 0; expected a positive number"),
        (["run", "--jobs", "many"], "argument --jobs: expected an integer, got 'many'"),
        (["run", "--update", "-p", "seed=1"], "--update stores the smoke profile with default parameters only"),
        (["fetch", "tsf"], "unknown data 'tsf'; allowed are tfs, unlabelled, latency, multi30k"),
        (["describe"], "the following arguments are required: FILE.yml"),
        (["rn"], "invalid choice: 'rn'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words: list[str], message: str, book: Paths, capsys: Any) -> None:
    before = files(book.root)
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert files(book.root) == before


def test_parameters_are_read_as_values_and_never_run() -> None:
    given = {
        "a=1": 1,
        "a=-3": -3,
        "a=0.5": 0.5,
        "a=.5": 0.5,
        "a=1e-3": 1e-3,
        "a=x=y": "x=y",
        "a=true": True,
        "a=False": False,
        "a=@cf/meta/llama-3.1-8b-instruct": "@cf/meta/llama-3.1-8b-instruct",
        "a=llama3:8b": "llama3:8b",
        "a=2026-01-01": "2026-01-01",
        "a=on": "on",
        "a=nan": "nan",
        "a=!!python/object:x": "!!python/object:x",
        "a=`%&*": "`%&*",
    }
    for text, value in given.items():
        (parameter,) = __main__.parser().parse_args(["run", "-p", text]).parameters
        assert parameter == ("a", value)
        assert type(parameter[1]) is type(value)


@pytest.mark.parametrize("odd", ["010", "1_0", "0x1", "1e1", " 1", "many", "1.5", ""])
@pytest.mark.parametrize(
    "words",
    [
        ["run", "--jobs"],
        ["prepare", "t", "--jobs"],
        ["prepare", "t", "--subwords"],
        ["prepare", "t", "--sample"],
        ["benchmark", "t", "--architectures"],
        ["benchmark", "t", "--seeds"],
        ["searches", "t", "--trainings"],
        ["train", "t", "--supernet", "HAT", "--checkpoint", "c", "--seed"],
    ],
    ids=" ".join,
)
def test_integers_are_written_as_people_do(words: list[str], odd: str, capsys: Any) -> None:
    code, _, err = call(capsys, *words, odd)
    assert code == 2
    assert f"argument {words[-1]}: expected an integer, got {odd!r}" in err


def test_an_interruption_is_told_from_a_failure(book: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "_run", interrupted)
    code, _, err = call(capsys, "run")
    assert code == 130
    assert err.count("\n") == 1


def test_an_error_in_the_program_is_not_hidden(book: Paths, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def wrong(args: object) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr(__main__, "_run", wrong)
    with pytest.raises(ValueError, match="a bug"):
        call(capsys, "run")


def test_the_repository_is_found_from_the_package_not_the_folder(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "llmpp_book", "run", "00_nothing"]
    asked = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert Paths().root == Path(__main__.__file__).parents[1]
    assert not list(tmp_path.iterdir())


# --- fetch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A data folder with one whole file for each of two groups; the cache is empty and there is no network."""
    found = {}
    registry = {}
    for group in ("tfs", "latency"):
        name = f"{sources.GROUPS[group]}file"
        found[group] = tmp_path / "data" / name
        found[group].parent.mkdir(parents=True)
        found[group].write_text(group)
        registry[name] = (hashlib.sha256(group.encode()).hexdigest(), len(group))
    monkeypatch.setattr(sources, "registry", lambda: registry)
    monkeypatch.setattr(sources, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "online", lambda: False)
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path / "data"))
    return found


def test_fetch_checks_what_is_here(data: dict[str, Path], capsys: Any) -> None:
    assert call(capsys, "fetch") == (0, "2 of 2 files are here and whole\n", "")
    assert call(capsys, "fetch", "tfs", f"{sources.GROUPS['tfs']}file")[:2] == (0, "1 of 1 files are here and whole\n")


def test_fetch_names_every_file_that_cannot_be_had(data: dict[str, Path], capsys: Any) -> None:
    data["tfs"].unlink()
    data["latency"].write_text("tampered")
    code, out, err = call(capsys, "fetch")
    assert (code, out) == (1, "0 of 2 files are here and whole\n")
    absent, damaged = err.splitlines()
    assert absent == f"{sources.GROUPS['tfs']}file is not here, and its public address does not answer"
    assert "is damaged: sha256 is" in damaged


def test_run_stops_at_a_damaged_file(data: dict[str, Path], book: Paths, capsys: Any) -> None:
    data["tfs"].write_text("tampered")
    before = files(book.root)
    code, out, err = call(capsys, "run")
    assert (code, out) == (1, "")
    assert "is damaged: sha256 is" in err
    assert err.count("\n") == 1
    assert files(book.root) == before


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
        (
            LARGEST.replace("[8, 8", "[3, 8", 1),
            [],
            "encoder_heads: 3 does not divide the inner width of attention, 512",
        ),
        (
            LARGEST.replace("640", str(10**21), 1),
            [],
            f"encoder_embed_dim: {10**21} is more than 1,048,576, so no network",
        ),
        (LARGEST.replace("640", "01000", 1), [], "01000 would be read as another number; write integers in plain"),
        (
            LARGEST.replace("[3072", "[51:12", 1),
            [],
            "51:12 would be read as another number; write integers in plain",
        ),
        ("a: [", [], "not valid YAML"),
        ("[" * 5000, [], ""),
        ("", [], "expected a YAML mapping"),
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
