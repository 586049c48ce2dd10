"""The runner: order, parallelism, failures, stored outputs, and that no half-finished or outdated page is ever used."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from small_book import files, glue, small_book, stdout, write_notebook

from llmpp_book.errors import InputError
from llmpp_book.runner.console import Console
from llmpp_book.runner.notebook import Paths
from llmpp_book.runner.run import run
from llmpp_book.runner.status import read_record
from llmpp_core import upstream as sources

GLUED = glue("ch01_quarter", "np.float64(0.25)")
FIRST = (
    "import sys\nprint('seed', seed)\nprint('careful', file=sys.stderr)\nprint(rate)\nseed + 1",
    # What myst_nb's glue does, without the seconds that it takes to load.
    f"from IPython.display import display\ndisplay({GLUED['data']!r}, raw=True, metadata={GLUED['metadata']!r})",
)
# Ends only if the notebook of the other name runs at the same time.
MEETS = """
import time
from pathlib import Path
Path("{me}.met").touch()
until = time.monotonic() + 100
while not Path("{other}.met").exists():
    assert time.monotonic() < until
    time.sleep(0.02)
"""


class Outcome(NamedTuple):
    code: int
    lines: list[str]
    errors: str


def call(paths: Paths, *names: str, **options: Any) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(paths, names, **{"workers": 4, "console": Console(False), **options})
    return Outcome(code, out.getvalue().splitlines(), err.getvalue())


def page(paths: Paths, stem: str) -> Any:
    found = nbformat.read(paths.page(stem), as_version=4)
    nbformat.validate(found)
    return found


@pytest.fixture(scope="module", autouse=True)
def no_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine without upstream files and without a network; what a killed process leaves behind goes with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
        patch.delenv("LLMPP_DATA_DIR", raising=False)
        patch.setattr(sources, "cache_dir", lambda: Path(os.devnull))
        patch.setattr(sources, "online", lambda: False)
        yield


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, Outcome]:
    """A book with every kind of notebook, and what its first run said."""
    paths = small_book(tmp_path_factory.mktemp("book"))
    folder = paths.notebooks
    write_notebook(folder, "01_first", *FIRST)
    write_notebook(
        folder, "02_second", "from pathlib import Path\nassert Path('../book/notebooks/01_first.ipynb').is_file()", after=["01_first"]
    )
    write_notebook(folder, "03_broken", "ok = 1", "# why\nwrong = {}\nwrong['key']", "print('never')")
    write_notebook(folder, "04_after_broken", after=["03_broken"])
    write_notebook(folder, "05_data", "print('from data')", needs=["tfs"], outputs={0: [stdout("stored\n"), glue("ch05_x", "1")]})
    write_notebook(folder, "06_meets", MEETS.format(me="a", other="b"))
    write_notebook(folder, "07_meets", MEETS.format(me="b", other="a"))
    write_notebook(folder, "08_exits", "import sys\nsys.exit(0)", "print('never')")
    write_notebook(folder, "09_killed", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    return paths, call(paths)


def test_notebooks_run_after_what_they_need_and_at_the_same_time(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    done = [line.split("  ")[0] for line in outcome.lines if "  done in" in line]
    assert sorted(done) == ["01_first", "02_second", "06_meets", "07_meets"]
    assert outcome.lines.index("02_second  started") > next(i for i, line in enumerate(outcome.lines) if line.startswith("01_first  done"))
    for stem in done:
        page(paths, stem)


def test_a_failure_names_cell_error_and_command_and_fails_the_run(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    assert outcome.code == 1
    assert "03_broken  FAILED in cell 3: KeyError: 'key'" in outcome.lines
    report = (paths.runs / "03_broken.failure.txt").read_text()
    assert report in outcome.errors
    assert report.startswith("03_broken failed in cell 3: KeyError: 'key'\n\n    # why\n    wrong = {}\n    wrong['key']\n")
    assert "----> 3 wrong['key']" in report
    assert "\x1b" not in report
    assert report.endswith("as far as it came: _build/run/03_broken.failed.ipynb\nrun it again with: llmpp run 03_broken\n")
    partial = nbformat.read(paths.runs / "03_broken.failed.ipynb", as_version=4)
    assert any(o.output_type == "error" for cell in partial.cells for o in cell.get("outputs", []))


def test_what_needs_a_failed_notebook_does_not_run_and_says_so(book: tuple[Paths, Outcome]) -> None:
    _, outcome = book
    assert "04_after_broken  not run: needs 03_broken" in outcome.lines
    assert "04_after_broken  started" not in outcome.lines


def test_a_notebook_that_ends_early_or_loses_its_process_fails(book: tuple[Paths, Outcome]) -> None:
    _, outcome = book
    assert "08_exits  FAILED in cell 2: RuntimeError: the notebook ended itself before its last cell" in outcome.lines
    assert "09_killed  FAILED in cell 2: its process ended with exit code -9" in outcome.lines


def test_no_failed_notebook_becomes_a_page(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    made = {"01_first", "02_second", "05_data", "06_meets", "07_meets"}
    assert {path.name for path in paths.pages.iterdir()} == {f"{stem}.ipynb" for stem in made}


def test_without_its_data_a_notebook_shows_stored_outputs_under_a_notice(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    reason = "tfs is neither in LLMPP_DATA_DIR nor in the cache, and its public address does not answer"
    assert f"05_data  stored outputs: {reason}" in outcome.lines
    title, notice, _, cell = page(paths, "05_data").cells
    assert title.source == "# 05_data"
    assert re.search(r"\(tfs\) could not be had here.*`llmpp fetch tfs`.*run 05_data", notice.source, re.DOTALL)
    assert cell.outputs[0].text == "stored\n"
    assert call(paths, "05").code == 0, "nothing failed"


def test_a_page_holds_no_warning_time_or_path(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    cells = page(paths, "01_first").cells
    assert [cell.id for cell in cells] == ["title", "parameters", "cell-0", "cell-1"]
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, 3]
    streams = [(o.name, o.text) for o in cells[2].outputs if o.output_type == "stream"]
    assert streams == [("stdout", "seed 0\n0.5\n"), ("stderr", "careful\n")]
    text = paths.page("01_first").read_text()
    for trace in (str(paths.root), 'papermill": {', "start_time", "iopub", "injected-parameters"):
        assert trace not in text
    made = page(paths, "01_first").metadata.llmpp.run
    assert set(made) == {"profile", "seed", "device", "versions"}
    assert (made.profile, made.seed, made.device) == ("smoke", 0, "cpu")


def test_the_book_tells_of_the_run(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    status = (paths.generated / "status.md").read_text()
    for stem, state in {"01_first": "done", "03_broken": "failed", "04_after_broken": "not run", "05_data": "stored outputs"}.items():
        assert f"* - {stem}\n  - {state}\n" in status
    scorecard = (paths.generated / "scorecard.md").read_text()
    assert "- 0.25; see 01_first\n  - ✓ reproduced\n" in scorecard
    assert re.fullmatch(r"9 notebooks in \d+\.\d s: .*4 done.*", outcome.lines[-1])
    for count in ("3 failed", "1 not run", "1 stored outputs"):
        assert count in outcome.lines[-1]


def test_what_did_not_change_is_not_touched(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    call(paths, "01", "02", "05")
    before = {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()}
    outcome = call(paths, "01", "02", "05")
    assert outcome.code == 0
    assert "01_first  unchanged" in outcome.lines
    assert "02_second  unchanged" in outcome.lines
    assert {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()} == before


def test_parameters_show_on_the_page_and_defaults_give_the_same_bytes_again(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    before = paths.page("01_first").read_bytes()
    assert call(paths, "01", profile="full", parameters={"seed": 3}).code == 0
    cells = page(paths, "01_first").cells
    assert [cell.id for cell in cells] == ["title", "parameters", "injected-parameters", "cell-0", "cell-1"]
    assert cells[2].source == '# Parameters\nprofile = "full"\nseed = 3'
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, 3, 4]
    assert page(paths, "01_first").metadata.llmpp.run.seed == 3
    assert call(paths, "01").code == 0
    assert paths.page("01_first").read_bytes() == before


def test_pages_can_be_stored_except_those_that_already_are(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    stored = (paths.notebooks / "05_data.ipynb").read_bytes()
    outcome = call(paths, "01", "05", update=True)
    assert outcome.code == 1
    assert "01_first  updated" in outcome.lines
    assert "05_data  not updated: stored outputs" in outcome.errors
    assert (paths.notebooks / "05_data.ipynb").read_bytes() == stored
    assert (paths.notebooks / "01_first.ipynb").read_bytes() == paths.page("01_first").read_bytes()
    assert "01_first  unchanged" in call(paths, "01").lines, "stored outputs are no change"


def test_a_damaged_page_or_record_is_made_again(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    whole = paths.page("01_first").read_bytes()
    paths.page("01_first").write_bytes(whole[: len(whole) // 2])
    assert call(paths, "01").lines[0] == "01_first  started"
    assert paths.page("01_first").read_bytes() == whole


def test_a_change_of_the_module_or_force_runs_a_notebook_again(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    (paths.root / "llmpp_core" / "space.py").write_text("x = 2\n")
    assert call(paths, "01").lines[0] == "01_first  started"
    assert call(paths, "01").lines[0] == "01_first  unchanged"
    assert call(paths, "01", force=True).lines[0] == "01_first  started"


def test_what_is_edited_during_a_run_is_neither_overwritten_nor_taken_for_what_ran(tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    edit = """
from pathlib import Path
own, module = Path("01_a.ipynb"), Path("../llmpp_core/space.py")
own.write_text(own.read_text().replace("# 01_a", "# A better title"))
module.write_text("x = 2")
"""
    write_notebook(paths.notebooks, "01_a", edit)
    outcome = call(paths, update=True)
    assert outcome.code == 1
    assert "01_a  not updated: it was edited while it ran" in outcome.errors
    assert "# A better title" in (paths.notebooks / "01_a.ipynb").read_text()
    assert page(paths, "01_a").cells[0].source == "# 01_a", "the page is of the notebook as it was planned"
    record = read_record(paths.runs / "01_a.json")
    assert record is not None
    assert record.content == "", "so that it is never skipped, not even if the edit of the module is undone"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["10"], {}, "unknown notebook '10'"),
        (["01"], {"profile": "ful"}, "unknown profile 'ful'"),
        (["01"], {"parameters": {"sed": 1}}, "no parameter 'sed'"),
        (["01"], {"workers": 0}, "--jobs is 0"),
        (["01"], {"update": True, "profile": "full"}, "--update stores the smoke profile with default parameters only"),
        (["01"], {"update": True, "parameters": {"seed": 1}}, "--update stores the smoke profile"),
    ],
)
def test_wrong_input_writes_nothing(names: list[str], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    write_notebook(paths.notebooks, "01_a")
    before = files(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        call(paths, *names, **options)
    assert files(tmp_path) == before


def test_a_wrong_claims_file_or_damaged_data_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = small_book(tmp_path)
    write_notebook(paths.notebooks, "01_a", needs=["tfs"])
    name = f"{sources.GROUPS['tfs']}file"
    (tmp_path / "data" / name).parent.mkdir(parents=True)
    (tmp_path / "data" / name).write_text("tampered")
    monkeypatch.setattr(sources, "registry", lambda: {name: ("0" * 64, 8)})
    monkeypatch.setenv("LLMPP_DATA_DIR", str(tmp_path / "data"))
    before = set(files(tmp_path))
    with pytest.raises(sources.DamagedFileError):
        call(paths)
    assert {name.removesuffix(".damaged") for name in files(tmp_path)} == before
    paths.claims.write_text("sections: 3")
    with pytest.raises(InputError, match=re.escape("claims.yml: expected one key, sections")):
        call(paths)
    assert not paths.pages.exists()


# --- interruptions ------------------------------------------------------------------------------------------------

# The second notebook says that it runs and by which processes, then waits; the second time it goes on.
SLOW = """
import os, time
from pathlib import Path
if not Path("went").exists():
    Path("went").write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(120)
"""
SCRIPT = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from llmpp_book.runner.notebook import Paths
    from llmpp_book.runner.run import run
    sys.exit(run(Paths(Path(sys.argv[1]))))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return (
            subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0 if sys.platform == "darwin" else False
        )


def until(condition: Callable[[], bool], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def stop(folder: Path, how: signal.Signals) -> Paths:
    """Stop a run in its second notebook, wait until all its processes are gone, and return the paths of its book."""
    paths = small_book(folder / "book")
    write_notebook(paths.notebooks, "01_quick")
    write_notebook(paths.notebooks, "02_slow", SLOW, after=["01_quick"])
    (folder / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, folder / "script.py", paths.root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    went = paths.notebooks / "went"
    until(lambda: went.is_file() and bool(went.read_text()))
    process.send_signal(how)
    process.wait(60)
    assert process.returncode != 0
    children = [int(pid) for pid in went.read_text().split()]
    until(lambda: not any(map(alive, children)))
    return paths


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_process_and_no_half_page_and_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    paths = stop(tmp_path, how)
    assert [path.name for path in paths.pages.iterdir()] == ["01_quick.ipynb"]
    assert not paths.generated.exists()
    if how is signal.SIGKILL:
        outcome = call(paths)
        assert outcome.code == 0
        assert outcome.lines[:2] == ["01_quick  unchanged", "02_slow  started"]


def test_a_notebook_that_was_not_asked_for_has_a_stored_page_until_it_runs(tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    write_notebook(paths.notebooks, "01_a", "print('old')")
    write_notebook(paths.notebooks, "02_b")
    assert call(paths, "01").code == 0
    assert "was not run in this build" in page(paths, "02_b").cells[1].source
    record = read_record(paths.runs / "02_b.json")
    assert record is not None
    assert record.state == "not run"

    write_notebook(paths.notebooks, "01_a", "print('new')")
    outcome = call(paths)
    assert {"01_a  started", "02_b  started"} <= set(outcome.lines), "one changed, the other never ran"
    assert page(paths, "01_a").cells[2].outputs[0].text == "new\n"
    assert "was not run in this build" not in paths.page("02_b").read_text()
