"""The runner: parallelism, failures, stored outputs, and that no half-finished or outdated page is ever used."""

from __future__ import annotations

import contextlib
import io
import json
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
from llmpp_book.runner.notebook import Paths
from llmpp_book.runner.run import run
from llmpp_book.runner.status import read_record
from llmpp_core import upstream

GLUED = glue("ch01_quarter", "np.float64(0.25)")
FIRST = (
    "import sys\nprint('seed', seed)\nprint('careful', file=sys.stderr)\nprint(rate)\nseed + 1",
    # What myst_nb's glue does, without the seconds that it takes to load.
    f"from IPython.display import display\ndisplay({GLUED['data']!r}, raw=True, metadata={GLUED['metadata']!r})",
)
# Ends only if the notebook of the other name runs at the same time.
MEETS = """
import os, sys, time
from pathlib import Path
Path("{me}.met").touch()
until = time.monotonic() + 100
while not Path("{other}.met").exists():
    assert time.monotonic() < until
    time.sleep(0.02)
"""
SURROUNDINGS = """import os, sys, matplotlib.pyplot as plt
plt.plot([1, 2]); plt.show()
print([sys.executable, os.environ["OMP_NUM_THREADS"], os.environ["CUDA_VISIBLE_DEVICES"], "llmpp-" in os.environ["IPYTHONDIR"]])"""


class Outcome(NamedTuple):
    code: int
    lines: list[str]
    errors: str


@pytest.fixture(scope="module", autouse=True)
def no_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine without upstream files or a network, with a site's kernel of the same name in front and an editor's backend."""
    spec = tmp_path_factory.mktemp("jupyter") / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false", "{connection_file}"], "display_name": "site", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        # What a killed process leaves behind goes with the tests.
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("scratch")))
        patch.setenv("JUPYTER_PATH", str(spec.parents[2]))
        patch.setenv("MPLBACKEND", "module://backend_interagg")
        patch.delenv("LLMPP_DATA_DIR", raising=False)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setattr(upstream, "cache_dir", lambda: Path(os.devnull))
        patch.setattr(upstream, "online", lambda: False)
        patch.setattr("joblib.cpu_count", lambda: 24)
        yield


def call(paths: Paths, *names: str, **options: Any) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(paths, names, **{"workers": 4, **options})
    return Outcome(code, out.getvalue().splitlines(), err.getvalue())


def page(paths: Paths, stem: str) -> Any:
    found = nbformat.read(paths.page(stem), as_version=4)
    nbformat.validate(found)
    return found


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, Outcome]:
    """A book with every kind of notebook, and what its first run said."""
    paths = small_book(tmp_path_factory.mktemp("book"))
    folder = paths.notebooks
    write_notebook(folder, "01_first", *FIRST)
    write_notebook(folder, "02_kernel", SURROUNDINGS)
    write_notebook(folder, "03_broken", "ok = 1", "# why\nwrong = {}\nwrong['key']", "print('never')")
    write_notebook(folder, "05_data", "print('from data')", needs=["tfs"], outputs={0: [stdout("stored\n"), glue("ch05_x", "1")]})
    write_notebook(folder, "06_meets", MEETS.format(me="a", other="b"))
    write_notebook(folder, "07_meets", MEETS.format(me="b", other="a"))
    write_notebook(folder, "08_exits", "import sys\nsys.exit(0)", "print('never')")
    write_notebook(folder, "09_killed", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    # The page of a chapter that was renamed.
    write_notebook(paths.pages, "05_old_name", "")
    return paths, call(paths)


def test_notebooks_run_at_the_same_time_and_only_finished_ones_become_pages(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    done = sorted(line.split("  ")[0] for line in outcome.lines if "  done in" in line)
    assert done == ["01_first", "02_kernel", "06_meets", "07_meets"], outcome
    assert {path.stem for path in paths.pages.iterdir()} == {*done, "05_data"}
    assert outcome.code == 1
    assert re.fullmatch(r"8 notebooks in .* s: .*", outcome.lines[-1])
    for count in ("4 done", "3 failed", "1 stored outputs"):
        assert count in outcome.lines[-1]


def test_a_failure_names_cell_error_and_command(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    assert "03_broken  FAILED in cell 3: KeyError: 'key'" in outcome.lines
    report = (paths.runs / "03_broken.failure.txt").read_text()
    assert report in outcome.errors
    assert report.startswith("03_broken failed in cell 3: KeyError: 'key'\n\n    # why\n    wrong = {}\n    wrong['key']\n")
    assert "----> 3 wrong['key']" in report
    assert "\x1b" not in report
    assert report.endswith("as far as it came: _build/run/03_broken.failed.ipynb\nrun it again with: llmpp run 03_broken\n")
    partial = nbformat.read(paths.runs / "03_broken.failed.ipynb", as_version=4)
    assert any(o.output_type == "error" for cell in partial.cells for o in cell.get("outputs", []))
    assert "08_exits  FAILED in cell 2: RuntimeError: the notebook ended itself before its last cell" in outcome.lines
    assert "09_killed  FAILED in cell 2: its process ended with exit code -9" in outcome.lines


def test_without_its_data_a_notebook_shows_stored_outputs_under_a_notice(book: tuple[Paths, Outcome]) -> None:
    paths, outcome = book
    reason = "tfs is neither in LLMPP_DATA_DIR nor in the cache, and its public address does not answer"
    assert f"05_data  stored outputs: {reason}" in outcome.lines
    title, notice, _, cell = page(paths, "05_data").cells
    assert title.source == "# 05_data"
    assert notice.source.startswith(":::{div} stored-outputs\n*Stored outputs*: ")
    assert re.search(r"\(tfs\) could not be had here.*`llmpp fetch tfs`.*run 05_data", notice.source, re.DOTALL)
    assert cell.outputs[0].text == "stored\n"


def test_a_notebook_runs_in_this_interpreter_and_its_own_surroundings(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    figure, printed = page(paths, "02_kernel").cells[2].outputs
    assert "image/png" in figure.data
    # Six threads: 24 processors shared by four notebooks.
    assert printed.text == f"{[sys.executable, '6', '', True]}\n"


def test_a_page_holds_no_time_or_path(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    cells, metadata = page(paths, "01_first").cells, page(paths, "01_first").metadata
    assert (set(metadata), metadata.language_info) == ({"kernelspec", "language_info", "llmpp"}, {"name": "python"})
    assert [cell.id for cell in cells] == ["title", "parameters", "cell-0", "cell-1"]
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, 3]
    streams = [(o.name, o.text) for o in cells[2].outputs if o.output_type == "stream"]
    assert streams == [("stdout", "seed 0\n0.5\n"), ("stderr", "careful\n")]
    text = paths.page("01_first").read_text()
    for trace in (str(paths.root), 'papermill": {', "start_time", "iopub", "injected-parameters"):
        assert trace not in text
    made = metadata.llmpp.run
    assert set(made) == {"profile", "seed", "device", "versions"}
    assert (made.profile, made.seed, made.device) == ("smoke", 0, "cpu")


def test_the_book_tells_of_the_run(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    status = (paths.generated / "status.md").read_text()
    for stem, state in {"01_first": "done", "03_broken": "failed", "05_data": "stored outputs"}.items():
        assert f"* - {stem}\n  - {state}\n" in status
    assert re.search(r"  - \[\d\] \d+\.\d s: ``\S", status)
    assert (
        "* - [✓ reproduced]{.verdict-0}\n  - The value is a quarter.\n  - 0.25; see 01_first\n"
        in (paths.generated / "scorecard.md").read_text()
    )


def test_the_life_of_a_page(book: tuple[Paths, Outcome]) -> None:
    paths, _ = book
    before = paths.page("01_first").read_bytes()
    assert call(paths, "01", profile="full", parameters={"seed": 3}).code == 0
    cells = page(paths, "01_first").cells
    assert [cell.id for cell in cells] == ["title", "parameters", "injected-parameters", "cell-0", "cell-1"]
    assert cells[2].source == '# Parameters\nprofile = "full"\nseed = 3'
    assert page(paths, "01_first").metadata.llmpp.run.seed == 3

    stored = (paths.notebooks / "05_data.ipynb").read_bytes()
    outcome = call(paths, "01", "05", update=True)
    assert outcome.code == 1
    assert paths.page("01_first").read_bytes() == before, "defaults give the same bytes again"
    assert "01_first  updated" in outcome.lines
    assert "05_data  not updated: stored outputs" in outcome.errors
    assert (paths.notebooks / "05_data.ipynb").read_bytes() == stored
    assert (paths.notebooks / "01_first.ipynb").read_bytes() == before

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in paths.root.rglob("*") if path.is_file()}

    call(paths, "01", "05")
    written = times()
    outcome = call(paths, "01", "05")
    assert outcome.code == 0
    assert "01_first  unchanged" in outcome.lines, "stored outputs are no change"
    assert times() == written
    paths.page("01_first").write_bytes(before[:100])
    assert call(paths, "01").lines[0] == "01_first  started", "a damaged page is made again"
    assert paths.page("01_first").read_bytes() == before


def test_what_is_edited_during_a_run_is_neither_overwritten_nor_taken_for_what_ran(tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    edit = """
from pathlib import Path
own, module = Path("01_a.ipynb"), Path("../llmpp_core/space.py")
own.write_text(own.read_text().replace("# 01_a", "# A better title"))
module.write_text("x = 2")
import llmpp_core.space
"""
    write_notebook(paths.notebooks, "01_a", edit)
    write_notebook(paths.notebooks, "02_b", "print(1)")
    outcome = call(paths, "01", update=True)
    assert outcome.code == 1
    assert "01_a  not updated: it was edited while it ran" in outcome.errors
    assert "# A better title" in (paths.notebooks / "01_a.ipynb").read_text()
    assert page(paths, "01_a").cells[0].source == "# 01_a", "the page is of the notebook as it was planned"
    record, other = (read_record(paths.record(stem)) for stem in ("01_a", "02_b"))
    assert record
    assert record.content == "", "so that it is never skipped, not even if the edit of the module is undone"
    assert other
    assert other.state == "not run"
    assert "Not run in this build" in page(paths, "02_b").cells[1].source, "what was not asked for shows stored outputs"


@pytest.mark.parametrize(
    ("options", "edit", "message"),
    [
        ({"parameters": {"seed": True}}, ("", ""), "01_a: parameter seed is True; expected int as in its default 0"),
        ({"parameters": {"rate": "fast"}}, ("", ""), "01_a: parameter rate is 'fast'; expected float as in its default 0.5"),
        ({"parameters": {"profile": "full"}}, ("", ""), "not set with -p but with --profile"),
        ({"update": True, "profile": "full"}, ("", ""), "--update stores the smoke profile with default parameters only"),
        ({}, ('"needs": []', '"needs": ["tsf"]'), "01_a needs 'tsf', which is unknown; known are tfs, unlabelled, latency, multi30k"),
        ({}, ("sections:", "sections: 3\nothers:"), "claims.yml, sections: Input should be a valid list"),
        ({}, ('{"cells"', "{cells"), "01_a.ipynb is not a readable notebook: JSONDecodeError"),
        ({}, ('"id": "title", ', ""), "in which cells have ids"),
        ({}, ('"id": "cell-0", "metadata": {}', '"id": "b", "metadata": {"tags": ["parameters"]}'), "2 cells are tagged 'parameters'"),
        ({}, ("seed = 0", "seed = "), "invalid syntax (the cell tagged 'parameters', line 2)"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(options: dict[str, Any], edit: tuple[str, str], message: str, tmp_path: Path) -> None:
    paths = small_book(tmp_path)
    for path in (paths.claims, write_notebook(paths.notebooks, "01_a", "1")):
        path.write_text(path.read_text().replace(*edit))
    before = files(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        run(paths, **options)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == before


# --- interruptions ------------------------------------------------------------------------------------------------

# Says that it runs and by which processes once the other one is finished, then waits; the second time it goes on.
SLOW = """
import os, time
from pathlib import Path
while Path("01_quick.ipynb").exists() and not Path("../_build/run/01_quick.json").exists():
    time.sleep(0.05)
if not Path("went").exists():
    Path("going").write_text(f"{os.getpid()} {os.getppid()}")
    Path("going").rename("went")
    time.sleep(120)
"""
SCRIPT = "import sys; from llmpp_book.runner.run import *; sys.exit(run(Paths(Path(sys.argv[1])), workers=2))"


def alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stdout.startswith("Z")


def until(condition: Callable[[], bool], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_process_and_no_half_page_and_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    paths = small_book(tmp_path / "book")
    quick = ["01_quick"] if how is signal.SIGKILL else []
    for stem in quick:
        write_notebook(paths.notebooks, stem)
    write_notebook(paths.notebooks, "02_slow", SLOW)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, paths.root], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    went = paths.notebooks / "went"
    until(went.is_file)
    process.send_signal(how)
    assert process.wait(60)
    until(lambda: not any(map(alive, map(int, went.read_text().split()))))
    assert [path.stem for path in paths.pages.glob("*")] == quick
    assert not paths.generated.exists()
    assert not paths.record("02_slow").exists()
    if quick:
        outcome = call(paths)
        assert outcome.code == 0
        assert set(outcome.lines[:2]) == {"01_quick  unchanged", "02_slow  started"}
