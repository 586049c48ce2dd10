"""Notebooks: what a file declares, what counts as a change, and the form in which an executed one is stored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from small_book import small_book, stdout, write_notebook

from llmpp_book.errors import InputError
from llmpp_book.runner.notebook import content_hash, normalise, project_state, read, stored_page, write_atomically


def test_a_notebook_declares_its_needs_and_parameters(tmp_path: Path) -> None:
    notebook = read(write_notebook(tmp_path, "03_baselines", "1 + 1", "", needs=["tfs"], after=["02_ground_truth"]))
    assert (notebook.stem, notebook.needs, notebook.after) == ("03_baselines", ("tfs",), ("02_ground_truth",))
    assert notebook.defaults == {"profile": "smoke", "seed": 0, "rate": 0.5}
    assert notebook.code_cells == 2, "an empty cell does not run"


def test_parameters_may_be_annotated_and_need_not_be_literals(tmp_path: Path) -> None:
    path = write_notebook(tmp_path, "01_a")
    content = json.loads(path.read_text())
    content["cells"][1]["source"] = ["seed: int = 3  # of the run\n", "steps = 10 ** 3\n"]
    path.write_text(json.dumps(content))
    assert read(path).defaults == {"seed": 3, "steps": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "01_a.ipynb is not a readable notebook: JSONDecodeError"),
        (lambda c: c["cells"][0].pop("id") and None, "in which cells have ids"),
        (lambda c: c.pop("cells") and None, "01_a.ipynb is not a readable notebook: KeyError: 'cells'"),
        (lambda c: c["cells"].append(c["cells"][1]), "2 cells are tagged 'parameters'"),
        (lambda c: c["cells"][1].update(source="seed = "), "the cell tagged 'parameters' is not valid Python"),
    ],
)
def test_a_bad_notebook_is_named_in_one_line(change: Any, message: str, tmp_path: Path) -> None:
    path = write_notebook(tmp_path, "01_a")
    content = json.loads(path.read_text())
    replaced = change(content)
    path.write_text(replaced if isinstance(replaced, str) else json.dumps(content))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read(path)
    assert "\n" not in str(error.value)


def fingerprint(root: Path, **changes: Any) -> str:
    paths = small_book(root)
    for name, text in changes.pop("files", {}).items():
        (root / name).write_text(text)
    path = write_notebook(root / "notebooks", "01_a", *changes.pop("cells", ["1 + 1"]), outputs=changes.pop("outputs", None))
    if "metadata" in changes:
        content = json.loads(path.read_text())
        content["cells"][2]["metadata"] = changes.pop("metadata")
        path.write_text(json.dumps(content))
    given = {"run": {"profile": "smoke"}, "parameters": {}, "data": {"a": "1"}, "after": {}, **changes}
    return content_hash(read(path), project_state(paths), **given)


@pytest.mark.parametrize(
    "changes",
    [
        {"cells": ["1 + 2"]},
        {"cells": ["1 + 1", "2"]},
        {"metadata": {"tags": ["hide-input"]}},
        {"metadata": {"mystnb": {"figure": {"name": "fig-a"}}}},
        {"files": {"llmpp_core/space.py": "x = 2\n"}},
        {"files": {"llmpp_core/prompts/role.txt": "You guess.\n"}},
        {"files": {"results/runs.csv": "a,b\n1,2\n"}},
        {"files": {"results/new.csv": ""}},
        {"files": {"requirements.lock": "numpy==2.1\n"}},
        {"run": {"profile": "full"}},
        {"parameters": {"seed": 1}},
        {"data": {"a": "2"}},
        {"after": {"00_z": "changed"}},
    ],
)
def test_whatever_outputs_depend_on_changes_the_hash(changes: dict[str, Any], tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "b", **changes) != fingerprint(tmp_path / "a")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outputs": {0: [stdout("2\n")]}},
        {"metadata": {"execution": {"iopub.status.busy": "2024-01-01"}, "collapsed": True}},
        {"files": {"llmpp_core/runner.py": "y = 2\n"}},
        {"files": {"book/claims.yml": ""}},
    ],
)
def test_whatever_they_do_not_depend_on_does_not(changes: dict[str, Any], tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "b", **changes) == fingerprint(tmp_path / "a")


def test_normal_form_has_no_trace_of_time_or_chance(tmp_path: Path) -> None:
    def executed(when: str, count: int) -> dict[str, Any]:
        content = json.loads(write_notebook(tmp_path, "01_a", "1 + 1").read_text())
        injected = {**content["cells"][1], "id": when, "source": "seed = 1", "metadata": {"tags": ["injected-parameters"]}}
        content["cells"].insert(2, injected)
        for cell in content["cells"]:
            cell["metadata"] |= {"papermill": {"start_time": when}, "execution": {"iopub.status.busy": when}}
            cell["metadata"].setdefault("tags", [])
        for i, cell in enumerate(content["cells"][1:]):
            cell["execution_count"] = count + i
        result = {"output_type": "execute_result", "data": {"text/plain": "2"}, "metadata": {}, "execution_count": count + 2}
        content["cells"][-1]["outputs"] = [result]
        content["metadata"] |= {"papermill": {"input_path": when}, "language_info": {"name": "python", "version": when}}
        return content

    run = {"profile": "smoke", "seed": 1}
    text = normalise(executed("10:00", 7), run)
    assert text == normalise(executed("11:11", 1), run)
    content = nbformat.reads(text, as_version=4)
    nbformat.validate(content)
    assert [cell.id for cell in content.cells] == ["title", "parameters", "injected-parameters", "cell-0"]
    assert [cell.execution_count for cell in content.cells[1:]] == [1, 2, 3]
    assert content.cells[-1].outputs[0].execution_count == 3
    assert content.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "llmpp": {"needs": [], "after": [], "run": run},
    }
    assert text == normalise(json.loads(text), run), "the normal form is its own"


def test_a_stored_page_keeps_outputs_and_says_what_it_is_after_the_title(tmp_path: Path) -> None:
    notebook = read(write_notebook(tmp_path, "01_a", "print(1)", outputs={0: [stdout("1\n")]}))
    page = nbformat.reads(stored_page(notebook, "Stored outputs", "Not computed here."), as_version=4)
    nbformat.validate(page)
    assert page.cells[0].source == "# 01_a"
    assert page.cells[1].source == "```{admonition} Stored outputs\n:class: warning\nNot computed here.\n```"
    assert page.cells[3].outputs[0].text == "1\n"


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder" / "page.md"
    assert write_atomically(path, "old\n")
    before = path.stat().st_mtime_ns
    assert not write_atomically(path, "old\n")
    assert path.stat().st_mtime_ns == before

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new\n")
    assert [p.name for p in path.parent.iterdir()] == ["page.md"]
    assert path.read_text() == "old\n"
