"""One notebook of the book: what it declares, and its executed form.

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmpp_book import repository
from llmpp_book.errors import InputError
from llmpp_core.jobs.files import replace_file

#: Libraries whose versions a page names.
LIBRARIES = ("numpy", "scipy", "scikit-learn", "pandas", "torch")
#: Id of the cell that says that a page shows the outputs stored with the project.
NOTICE = "stored-outputs"
#: Metadata of a run or of an editor's view; a notebook that differs only here is the same notebook.
VOLATILE = ("papermill", "execution", "ExecuteTime", "collapsed", "scrolled")


class Paths:
    """Where things are, below the repository's root."""

    def __init__(self, root: Path = repository.ROOT):
        self.root = root
        #: Committed notebooks, with the outputs of the smoke profile, and notebooks as the book shows them.
        self.notebooks, self.pages = root / "notebooks", root / "book" / "notebooks"
        #: Pages that the runner writes; records and failure reports of runs; the list of the paper's claims.
        self.generated, self.runs, self.claims = root / "book" / "generated", root / "_build" / "run", root / "book" / "claims.yml"

    def page(self, stem: str) -> Path:
        """Return the executed notebook of a stem."""
        return self.pages / f"{stem}.ipynb"

    def record(self, stem: str) -> Path:
        """Return the file that says how the page of a stem came about."""
        return self.runs / f"{stem}.json"


@dataclass(frozen=True)
class Notebook:
    """A committed notebook."""

    path: Path
    #: Its JSON.
    content: dict[str, Any] = field(repr=False)
    #: Groups of upstream files (`upstream.GROUPS`) without which it cannot run.
    needs: tuple[str, ...]
    #: Its parameters and their default values; None where the value is not a literal.
    defaults: dict[str, Any]
    #: What the committed outputs say of the run that made them.
    stored_run: dict[str, Any]

    @property
    def stem(self) -> str:
        """File name without its ending, such as ``03_baselines``."""
        return self.path.stem


def text(source: str | list[str]) -> str:
    """Join the lines that notebook files store as lists."""
    return source if isinstance(source, str) else "".join(source)


def running_cells(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cells of a notebook that run: code, and not empty."""
    return [cell for cell in content["cells"] if cell["cell_type"] == "code" and text(cell["source"]).strip()]


def read(path: Path) -> Notebook:
    """Read a committed notebook; raises InputError naming the file and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [(cell["cell_type"], text(cell["source"]), cell["metadata"].get("tags", [])) for cell in content["cells"]]
        if content["nbformat"] != 4 or not all("id" in cell for cell in content["cells"]):
            raise ValueError("expected notebook format 4.5 or later, in which cells have ids")
        declared = content["metadata"].get("llmpp", {})
        tagged = [source for kind, source, tags in cells if kind == "code" and "parameters" in tags]
        if len(tagged) > 1:
            raise ValueError(f"{len(tagged)} cells are tagged 'parameters'; give one")
        defaults = _defaults(tagged[0] if tagged else "")
        return Notebook(path, content, tuple(declared.get("needs", ())), defaults, dict(declared.get("run", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise InputError(f"{path.name} is not a readable notebook: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _defaults(source: str) -> dict[str, Any]:
    defaults = {}
    for statement in ast.parse(source, "the cell tagged 'parameters'").body:
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
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def sha256(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def normalise(executed: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Return an executed notebook as text that is the same after every equal run: no times, no random ids."""
    content = json.loads(json.dumps(executed))
    for cell in content["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in VOLATILE and not (k == "tags" and not v)}
        if "injected-parameters" in cell["metadata"].get("tags", []):
            cell["id"] = "injected-parameters"
            cell["source"] = text(cell["source"]).rstrip()
    metadata = {k: v for k, v in content["metadata"].items() if k not in VOLATILE}
    metadata["language_info"] = {"name": "python"}
    metadata["llmpp"] = {**metadata.get("llmpp", {}), "run": dict(run)}
    return _dump({**content, "metadata": metadata})


def stored_page(notebook: Notebook, notice: str) -> str:
    """Return the committed notebook, outputs included, with a notice right after its first cell."""
    cell = {"cell_type": "markdown", "id": NOTICE, "metadata": {}, "source": f":::{{div}} {NOTICE}\n{notice}\n:::"}
    cells = notebook.content["cells"]
    return _dump({**notebook.content, "cells": [*cells[:1], cell, *cells[1:]]})


def _dump(content: Mapping[str, Any]) -> str:
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
