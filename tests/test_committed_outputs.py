"""The committed tables are those of the pages that `make book` computed, but for the last digits.

Committed outputs come from one processor; another adds up in another order. Whether a page comes out the same twice is for nbval to see.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from llmpp_book.runner.notebook import NOTICE

ROOT = Path(__file__).parents[1]
LAST_DIGITS = re.compile(r"(\d\.\d{9})\d+")


def checked(notebook: NotebookNode) -> str:
    """Return the outputs that have to stay, of the cells that are tagged so."""
    cells = [cell for cell in notebook.cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    return LAST_DIGITS.sub(r"\1", "\n".join(json.dumps([cell.id, cell.outputs], indent=1, sort_keys=True) for cell in cells))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_tables_are_those_of_the_page(path: Path) -> None:
    file = ROOT / "book" / "notebooks" / path.name
    if not file.exists():
        pytest.skip("there is no page yet; make book runs the notebooks")
    page = nbformat.read(file, as_version=4)
    if any(cell.get("id") == NOTICE for cell in page.cells):
        pytest.skip("the page shows stored outputs, since this notebook's files are absent or it was not run")
    stored, computed = (checked(notebook).splitlines() for notebook in (nbformat.read(path, as_version=4), page))
    difference = "\n".join(difflib.unified_diff(stored, computed, "committed", "page", n=1, lineterm=""))
    assert not difference, f"{path.stem}: if the page is current and this is meant, make notebooks stores it\n{difference}"


def test_a_digit_that_counts_is_seen_and_one_that_does_not_is_not() -> None:
    def notebook(number: str, tag: str = "nbval-check-output") -> NotebookNode:
        output = new_output("display_data", {"text/plain": number})
        return new_notebook(cells=[new_code_cell(id="a", outputs=[output], metadata={"tags": [tag]})])

    assert checked(notebook("0.12345678901")) == checked(notebook("0.12345678904"))
    assert checked(notebook("0.12")) != checked(notebook("0.13"))
    assert checked(notebook("0.12", "hide-cell")) == checked(notebook("0.13", "hide-cell"))
