"""Keep the built book to itself: no page names a script of another host.

MathJax is served from the book. Its one-file SVG build draws its own glyphs and asks for no font. It is copied after the
build rather than put in `_static`, because the book would load any script found there on every page, formulas or not.

Thebe, which the book loads by default, is switched off: its script is fetched from a CDN, and it declares its constants
twice on a page, an error in the browser's console.
"""

import importlib.util
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.fileutil import copy_asset_file

MATHJAX = "mathjax/tex-svg.js"


def setup(app: Sphinx) -> dict[str, Any]:
    app.config.mathjax_path = MATHJAX
    app.connect("config-inited", switch_thebe_off)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def switch_thebe_off(app: Sphinx, config: Config) -> None:
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners[event]):
            if listener.handler.__module__ == "sphinx_thebe":
                app.disconnect(listener.id)


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    # The package's name has hyphens in it, so no import statement can name it.
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        raise RuntimeError("sphinx-mathjax-offline is not installed; install requirements.lock")
    target = Path(app.outdir, "_static", MATHJAX)
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_asset_file(Path(package.origin).parent / "static" / MATHJAX, target.parent)
