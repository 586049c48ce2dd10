"""Say under the title of each chapter how long it takes to read, and on the first page how long the book does."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

#: Words of prose that a reader of science gets through in a minute.
PACE = 200
_CHAPTER = re.compile(r"notebooks/\d\d_")


def minutes(words: int) -> int:
    return max(1, round(words / PACE))


def count(app: Sphinx, doctree: nodes.document) -> None:
    """Count the words of a page that are text: paragraphs and captions, not code and not tables."""
    texts = list(doctree.findall(lambda node: isinstance(node, (nodes.paragraph, nodes.caption))))
    words = sum(len(node.astext().split()) for node in texts if not isinstance(node.parent, nodes.entry))
    # Sphinx forgets it with the page, and brings it along from another process.
    app.env.metadata[app.env.docname]["words"] = words


def tell(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the minutes under the title of a chapter, and the book's in place of READING-MINUTES on other pages."""
    known = {name: of["words"] for name, of in app.env.metadata.items() if _CHAPTER.match(name)}
    if docname in known and (title := next(doctree.findall(nodes.title), None)):
        line = nodes.paragraph("", f"{minutes(known[docname])} minutes to read", classes=["reading-time"])
        title.parent.insert(title.parent.index(title) + 1, line)
    for text in list(doctree.findall(lambda node: isinstance(node, nodes.Text) and "READING-MINUTES" in node)):
        text.parent.replace(text, nodes.Text(text.replace("READING-MINUTES", str(minutes(sum(known.values()))))))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-read", count)
    app.connect("doctree-resolved", tell)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
