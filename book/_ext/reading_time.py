"""Say under the title of each chapter how long it takes to read, and on the first page how long the book does."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

#: Words of prose that a reader of science gets through in a minute.
PACE = 200
_CHAPTER = re.compile(r"notebooks/\d\d_")


def minutes(words: int) -> int:
    return max(1, round(words / PACE))


def count(app: Sphinx, doctree: nodes.document) -> None:
    """Count the words of a page that are text: paragraphs and captions, not code and not tables."""
    texts = list(doctree.findall(lambda node: isinstance(node, (nodes.paragraph, nodes.caption))))
    words = sum(len(node.astext().split()) for node in texts if not isinstance(node.parent, nodes.entry))
    _known(app.env)[app.env.docname] = words


def tell(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the minutes under the title of a chapter, and the book's in place of READING-MINUTES on other pages."""
    known = {name: words for name, words in _known(app.env).items() if _CHAPTER.match(name)}
    if docname in known and (title := next(doctree.findall(nodes.title), None)):
        line = nodes.paragraph("", f"{minutes(known[docname])} minutes to read", classes=["reading-time"])
        title.parent.insert(title.parent.index(title) + 1, line)
    for text in list(doctree.findall(lambda node: isinstance(node, nodes.Text) and "READING-MINUTES" in node)):
        text.parent.replace(text, nodes.Text(text.replace("READING-MINUTES", str(minutes(sum(known.values()))))))


def merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    _known(env).update({name: words for name, words in _known(other).items() if name in docnames})


def _known(env: BuildEnvironment) -> dict[str, int]:
    if not hasattr(env, "llmpp_words"):
        env.llmpp_words = {}  # type: ignore[attr-defined]
    return env.llmpp_words  # type: ignore[attr-defined,no-any-return]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", count)
    app.connect("doctree-resolved", tell)
    app.connect("env-merge-info", merge)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
