"""Leave out what would open on nothing: the code of a cell that is hidden and shows nothing stays in the notebook only."""

from typing import Any

from docutils import nodes
from myst_nb.sphinx_ import HideInputCells
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform


class EmptyCells(SphinxPostTransform):
    default_priority = HideInputCells.default_priority - 1
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") == "cell_code" and cell.get("hide_mode") == "input" and not shows(cell):
                cell.parent.remove(cell)


def shows(cell: nodes.container) -> bool:
    """Return whether a code cell has an output that is seen."""
    outputs = [part for part in cell.children if part.get("nb_element") == "cell_code_output"]  # type: ignore[attr-defined]
    return any(child for output in outputs for child in output.children)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_post_transform(EmptyCells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
