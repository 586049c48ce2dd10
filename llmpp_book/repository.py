"""Where the book's repository is, whose tables, chapters and claims these commands read and write."""

from __future__ import annotations

import os
from pathlib import Path


def _root() -> Path:
    """Return the folder that ``LLMPP_BOOK`` names, else that of this checkout, else the nearest one above the working directory."""
    if os.environ.get("LLMPP_BOOK"):
        return Path(os.environ["LLMPP_BOOK"]).resolve()
    here = Path.cwd()
    places = [Path(__file__).resolve().parents[1], here, *here.parents]
    return next((place for place in places if (place / "book" / "claims.yml").is_file()), here)


#: The repository. Where nothing is found it is the working directory, and what reads a table says that it is not there.
ROOT = _root()
#: Tables of this project's own measurements, searches and recorded answers.
RESULTS = ROOT / "results"
