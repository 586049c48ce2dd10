"""One notebook of the book: what it declares, when it must run again, and its executed form.

Reading works on the plain JSON of the file, so that a build in which nothing changed starts at once.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llmpp_book import repository
from llmpp_book.errors import InputError
from llmpp_core.jobs.files import replace_file

#: Libraries whose versions a page names.
LIBRARIES = ("numpy", "scipy", "scikit-learn", "pandas", "torch")
#: Id of the cell that says that a page shows the outputs stored with the project.
NOTICE = "stored-outputs"
# Metadata of a run or of an editor's view; a notebook that differs only here is the same notebook.
_VOLATILE = ("papermill", "execution", "ExecuteTime", "collapsed", "scrolled")
# Files that run notebooks or describe runs; a change here changes no result.
_NOT_HASHED = ("__main__.py", "runner.py", "runner_console.py", "runner_plan.py", "scorecard.py", "status.py")


@dataclass(frozen=True)
class Paths:
    """Where things are, below the repository's root."""

    root: Path = repository.ROOT

    @property
    def notebooks(self) -> Path:
        """Committed notebooks, with the outputs of the smoke profile."""
        return self.root / "notebooks"

    @property
    def pages(self) -> Path:
        """Notebooks as the book shows them."""
        return self.root / "book" / "notebooks"

    @property
    def generated(self) -> Path:
        """Pages that the runner writes."""
        return self.root / "book" / "generated"

    @property
    def runs(self) -> Path:
        """Records and failure reports."""
        return self.root / "_build" / "run"

    @property
    def claims(self) -> Path:
        """The list of the paper's claims."""
        return self.root / "book" / "claims.yml"

    def page(self, stem: str) -> Path:
        """Return the executed notebook of a stem."""
        return self.pages / f"{stem}.ipynb"

    def record(self, stem: str) -> Path:
        """Return the file that says how the page of a stem came about."""
        return self.runs / f"{stem}.json"


@dataclass(frozen=True)
class Notebook:
    """A committed notebook.

    Parameters
    ----------
    path : Path
        The file.
    content : dict
        Its JSON.
    needs : tuple of str
        Groups of upstream files (`sources.GROUPS`) without which it cannot run.
    after : tuple of str
        Stems of the notebooks that must run before it.
    defaults : dict
        Its parameters and their default values; None where the value is not a literal.
    """

    path: Path
    content: dict[str, Any] = field(repr=False)
    needs: tuple[str, ...]
    after: tuple[str, ...]
    defaults: dict[str, Any]

    @property
    def stem(self) -> str:
        """File name without its ending, such as ``03_baselines``."""
        return self.path.stem

    @property
    def stored_run(self) -> dict[str, Any]:
        """What the committed outputs say of the run that made them."""
        return dict(self.content["metadata"].get("llmpp", {}).get("run", {}))

    @property
    def code_cells(self) -> int:
        """Number of cells that run."""
        return sum(cell["cell_type"] == "code" and bool(text(cell["source"]).strip()) for cell in self.content["cells"])


def text(source: str | list[str]) -> str:
    """Join the lines that notebook files store as lists."""
    return source if isinstance(source, str) else "".join(source)


def read(path: Path) -> Notebook:
    """Read a committed notebook; raises InputError naming the file and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        declared = content["metadata"].get("llmpp", {})
        cells = [(cell["cell_type"], text(cell["source"]), cell["metadata"].get("tags", [])) for cell in content["cells"]]
        if content["nbformat"] != 4 or not all("id" in cell for cell in content["cells"]):
            raise ValueError("expected notebook format 4.5 or later, in which cells have ids")
        needs, after = (tuple(declared.get(key, ())) for key in ("needs", "after"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path.name} is not a readable notebook: {type(error).__name__}: {' '.join(str(error).split())}") from None
    tagged = [source for kind, source, tags in cells if kind == "code" and "parameters" in tags]
    if len(tagged) > 1:
        raise InputError(f"{path.name}: {len(tagged)} cells are tagged 'parameters'; give one")
    return Notebook(path, content, needs, after, _defaults(path, tagged[0] if tagged else ""))


def _defaults(path: Path, source: str) -> dict[str, Any]:
    defaults = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"{path.name}: the cell tagged 'parameters' is not valid Python: {error.msg}, line {error.lineno}") from None
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value:
                try:
                    defaults[target.id] = ast.literal_eval(statement.value)
                except ValueError:
                    defaults[target.id] = None
    return defaults


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of `LIBRARIES`, without importing them."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def project_state(paths: Paths) -> dict[str, Any]:
    """Return digests of what every notebook depends on: the module, the results and the installed versions."""
    module = [
        path
        for pattern in ("*.py", "*.txt", "*.tsv")
        for path in (paths.root / "llmpp_core").rglob(pattern)
        if path.name not in _NOT_HASHED or path.parent != paths.root / "llmpp_core"
    ]
    files = [*module, *(paths.root / "results").rglob("*"), paths.root / "requirements.lock"]
    digests = {path.relative_to(paths.root).as_posix(): sha256(path) for path in files if path.is_file()}
    return {"files": digests, "versions": versions()}


def content_hash(
    notebook: Notebook,
    state: Mapping[str, Any],
    run: Mapping[str, Any],
    parameters: Mapping[str, Any],
    data: Mapping[str, Any],
    after: Mapping[str, Any],
) -> str:
    """Return the sha256 of everything that a notebook's outputs depend on.

    Parameters
    ----------
    notebook : Notebook
        Its cells count, its stored outputs do not.
    state : mapping
        What `project_state` returned.
    run : mapping
        What the page says of its run: profile, seed, device.
    parameters : mapping
        Parameters that differ from the defaults.
    data : mapping
        Checksums of the upstream files it needs.
    after : mapping
        What is known of the notebooks that run before: their content hashes.
    """
    cells = [
        [cell["cell_type"], cell["id"], text(cell["source"]), {k: v for k, v in cell["metadata"].items() if k not in _VOLATILE}]
        for cell in notebook.content["cells"]
    ]
    parts = [cells, notebook.needs, notebook.content["metadata"].get("kernelspec"), state, run, parameters, data, after]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def normalise(executed: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return an executed notebook as text that is the same after every equal run: no times, no counters, no random ids."""
    content = json.loads(json.dumps(executed))
    count = 0
    for cell in content["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in _VOLATILE and not (k == "tags" and not v)}
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"
            cell["source"] = text(cell["source"]).rstrip()
        if cell["cell_type"] == "code":
            if cell["execution_count"] is not None:
                count += 1
                cell["execution_count"] = count
            for output in cell["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = count
    metadata = {k: v for k, v in content["metadata"].items() if k not in _VOLATILE}
    metadata["language_info"] = {"name": "python"}
    metadata["llmpp"] = {**metadata.get("llmpp", {}), "run": dict(run)}
    return dump({**content, "metadata": metadata})


def stored_page(notebook: Notebook, title: str, notice: str) -> str:
    """Return the committed notebook, outputs included, with a notice right after its first cell."""
    lines = f"```{{admonition}} {title}\n:class: warning\n{notice}\n```"
    cell = {"cell_type": "markdown", "id": NOTICE, "metadata": {}, "source": lines}
    first, *rest = notebook.content["cells"]
    return dump({**notebook.content, "cells": [first, cell, *rest]})


def dump(content: Mapping[str, Any]) -> str:
    """Return a notebook's JSON as Jupyter writes it: sorted keys, one space of indentation, a list per multi-line text."""
    import nbformat

    return str(nbformat.writes(nbformat.from_dict(content))) + "\n"


def write_atomically(path: Path, content: str) -> bool:
    """Write a text file so that it is never seen half-written; return False, untouched, if it already holds the text."""
    data = content.encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    replace_file(path, data)
    return True
