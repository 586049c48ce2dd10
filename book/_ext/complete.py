"""Refuse to build a book in which a page of the contents is missing, or that has no chapters."""

from pathlib import Path
from typing import Any

import yaml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-check-consistency", refuse_gaps)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def refuse_gaps(app: Sphinx, env: BuildEnvironment) -> None:
    contents = yaml.safe_load(Path(app.srcdir, "_toc.yml").read_text(encoding="utf-8"))
    listed = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    missing = [name for name in listed if name not in env.found_docs]
    if missing or not any(name.startswith("notebooks/") for name in listed):
        raise SphinxError(f"these pages of the contents are missing: {', '.join(missing) or 'all chapters'}; run llmpp run first")
