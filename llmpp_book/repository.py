"""Where the book's repository is, whose tables, chapters and claims these commands read and write."""

from __future__ import annotations

import os
from pathlib import Path


def _is_it(folder: Path) -> bool:
    return (folder / "book" / "claims.yml").is_file()


def _root() -> Path:
    """Return the folder that ``LLMPP_BOOK`` names, else that of this checkout, else the nearest one above the working directory."""
    if os.environ.get("LLMPP_BOOK"):
        return Path(os.environ["LLMPP_BOOK"]).resolve()
    here = Path.cwd()
    return next(filter(_is_it, [Path(__file__).resolve().parents[1], here, *here.parents]), here)


#: The repository; where nothing is found, the working directory.
ROOT = _root()
#: What an error about a table that is not there adds where nothing was found, as may be after ``pip install .``.
HINT = "" if _is_it(ROOT) else f"; {ROOT} is no checkout of the book: work in one, or name it in LLMPP_BOOK"
#: Tables of this project's own measurements, searches and recorded answers.
RESULTS = ROOT / "results"
