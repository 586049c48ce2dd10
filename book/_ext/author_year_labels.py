"""Label the references as the text cites them: by authors and year."""

from collections.abc import Iterable, Iterator
from typing import Any

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.alpha import Style
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


class AuthorYearLabels(BaseLabelStyle):
    def format_labels(self, entries: Iterable[Entry]) -> Iterator[str]:
        for entry in entries:
            names = [" ".join(str(name) for name in person.rich_last_names) for person in entry.persons["author"]]
            yield f"{names[0] + ' et al.' if len(names) > 2 else ' and '.join(names)}, {entry.fields['year']}"


def setup(app: Sphinx) -> dict[str, Any]:
    register_plugin("pybtex.style.formatting", "author_year", type("AuthorYear", (Style,), {"default_label_style": AuthorYearLabels}))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
