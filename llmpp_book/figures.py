"""How the book shows figures and tables: one look, real captions, and a digest of the data that CI can compare.

Pictures differ between machines in ways that do not matter, so nbval never compares them. `show` puts a digest of what
was drawn beside each picture instead; a rerun that draws other data has another digest.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from myst_nb import glue
from PIL import Image

#: Colours that readers with any colour vision can tell apart, used in this order; give series different markers too. They are seaborn's
#: "colorblind", those with less than a contrast of 3 to white made darker.
PALETTE = sns.color_palette(["#0173b2", "#ce8505", "#029e73", "#d55e00", "#cc78bc", "#bd8759", "#949494", "#4b9dcb"])
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Cells that are set to the right: a number, an interval, a share, or nothing.
_NUMBERS = r"(?:[-+\u2212]?[\d.,]+[^A-Za-z]*|\u2013|)"
#: Pixels per inch at which figures are shown. They are stored with twice as many, for sharp screens.
DPI = 110


def set_style() -> None:
    """Set the book's look for all figures of a notebook."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette=PALETTE,
        rc={"figure.figsize": (7.0, 4.0), "figure.dpi": DPI, "savefig.bbox": "tight", "axes.titlesize": "medium"},
    )


def digest(fig: Figure) -> str:
    """Return a short hash of the data drawn in a figure, to four significant digits."""
    found = hashlib.sha256()
    for ax in [*fig.axes, *(inset for axes in fig.axes for inset in axes.child_axes)]:
        arrays: list[Any] = [line.get_xydata() for line in ax.lines]
        arrays += [patch.get_path().transformed(patch.get_patch_transform()).vertices for patch in ax.patches]
        arrays += [image.get_array() for image in ax.images]
        for collection in ax.collections:
            # The paths of a scatter plot are its markers, which are style.
            paths = [] if isinstance(collection, PathCollection) else collection.get_paths()
            arrays += [collection.get_offsets(), *(path.vertices for path in paths), collection.get_array()]
        for array in arrays:
            values: np.ndarray = np.ma.masked_array([] if array is None else array, dtype=float).filled(np.nan)
            # Rounding errors must not show: next to nothing (in its column) is 0, and a tie of two roundings always goes one way.
            values[np.abs(values) < 1e-9 * np.fmax.reduce(np.abs(values), axis=0, initial=0.0)] = 0
            found.update(",".join(f"{value * (1 + 1e-9) + 0.0:.4g}" for value in values.ravel()).encode())
    return found.hexdigest()[:12]


def show(fig: Figure) -> None:
    """Display a figure as a PNG of twice the shown density with the digest of its data as its plain text, and close it."""
    drawn, stored = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=2 * DPI)
    plt.close(fig)
    # Of 256 colours, so that the notebooks do not grow.
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(stored, format="png", optimize=True)
    data = {"image/png": stored.getvalue(), "text/plain": f"<figure, data {digest(fig)}>"}
    display(data, raw=True, metadata={"image/png": {"width": image.width // 2}})


def show_table(frame: pd.DataFrame, caption: str, name: str, decimals: int = 2, best: Mapping[str, str] = MappingProxyType({})) -> None:
    """Display a frame as a captioned table that the book numbers and can refer to by `name`.

    Parameters
    ----------
    frame : pandas.DataFrame
        Cells may be text, integers or floats; multi-level columns are joined by a space. The index is shown.
    caption : str
        One or two sentences that say what to see, in MyST markdown.
    name : str
        Label for references, such as ``tbl-baselines``.
    decimals : int
        Digits after the point of floats; nan is shown as a dash.
    best : mapping of str to str
        Columns of numbers, and whether the "smallest" or the "largest" is set in bold; all that are shown alike are.
    """
    text = frame.copy()
    text.columns = [" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in frame.columns]
    shown = text.map(lambda value: _cell(value, decimals)).astype(str)
    numeric = [bool(column.str.fullmatch(_NUMBERS).all()) for _, column in shown.items()]
    for column, which in best.items():
        # By position, since rows may have equal names.
        wanted = shown[column].iloc[{"smallest": text[column].argmin, "largest": text[column].argmax}[which]()]
        shown[column] = shown[column].map(lambda cell, wanted=wanted: f"**{cell}**" if cell == wanted else cell)
    corner = " / ".join(str(n) for n in frame.index.names if n) or " "
    header = [corner, *text.columns]
    rows = [
        [" / ".join(map(str, i)) if isinstance(i, tuple) else str(i), *row] for i, row in zip(frame.index, shown.to_numpy(), strict=True)
    ]
    rule = ["---", *("---:" if n else "---" for n in numeric)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in [header, rule, *rows]]
    markdown = f":::{{table}} {' '.join(caption.split())}\n:name: {name}\n\n" + "\n".join(lines) + "\n:::"
    display(
        {
            "text/markdown": markdown,
            "text/html": re.sub(
                r"\*\*(.+?)\*\*", r"<strong>\1</strong>", pd.DataFrame(rows, columns=header).to_html(index=False, border=0)
            ),
            "text/plain": "\n".join(lines),
        },
        raw=True,
    )


def _cell(value: Any, decimals: int) -> str:
    if isinstance(value, (float, np.floating)):
        return "–" if np.isnan(value) else f"{value:.{decimals}f}"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def glue_interval(name: str, interval: Iterable[float]) -> None:
    """Glue a value as `name` and the ends of its interval as `name`_low and `name`_high."""
    for end, number in zip(("", "_low", "_high"), interval, strict=True):
        glue(f"{name}{end}", float(number), display=False)
