"""The same pages by plain Sphinx, without jupyter-book: ``make sphinx``. Whatever both builds need is in ``_config.yml``."""

import sys
from pathlib import Path

import yaml

BOOK = Path(__file__).parent
sys.path.insert(0, str(BOOK / "_ext"))
settings = yaml.safe_load((BOOK.parent / "_config.yml").read_text(encoding="utf-8"))

project = html_title = settings["title"]
author, copyright = settings["author"], settings["copyright"]
extensions = [
    "myst_nb",
    "sphinx_book_theme",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_external_toc",
    "sphinx_multitoc_numbering",
    "sphinx_togglebutton",
    "sphinxcontrib.bibtex",
    *settings["sphinx"]["extra_extensions"],
    *settings["sphinx"]["local_extensions"],
]
external_toc_path = "_toc.yml"
exclude_patterns = settings["exclude_patterns"]
nb_execution_mode = settings["execute"]["execute_notebooks"]
bibtex_bibfiles = settings["bibtex_bibfiles"]
myst_enable_extensions = settings["parse"]["myst_enable_extensions"]
suppress_warnings = ["myst.domains"]
numfig = True
html_theme = "sphinx_book_theme"
html_favicon = settings["html"]["favicon"]
html_static_path = ["_static"]
html_css_files, html_js_files = ([path.name for path in sorted((BOOK / "_static").glob(f"*.{kind}"))] for kind in ("css", "js"))
html_sourcelink_suffix = ""
globals().update(settings["sphinx"]["config"])
launch_buttons = {name: value for name, value in settings["launch_buttons"].items() if value}
html_theme_options = {
    **settings["sphinx"]["config"]["html_theme_options"],
    "home_page_in_toc": True,
    "repository_url": settings["repository"]["url"],
    "repository_branch": settings["repository"]["branch"],
    "launch_buttons": launch_buttons,
}
