"""Figures and tables: the digest follows the data and not the look, and every output has the forms that the book needs."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from llmpp_book import figures

mpl.use("agg")


@pytest.fixture(autouse=True)
def restore_style() -> Any:
    with mpl.rc_context():
        yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    bundles: list[dict[str, Any]] = []

    def display(bundle: dict[str, Any], *, raw: bool, metadata: Any = None) -> None:
        assert raw
        bundles.append(bundle if metadata is None else {**bundle, "metadata": metadata})

    monkeypatch.setattr(figures, "display", display)
    return bundles


def drawn(draw: Callable[[Any, np.ndarray], Any], values: np.ndarray) -> Figure:
    fig, ax = plt.subplots()
    draw(ax, values)
    return fig


KINDS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "line": lambda ax, v: ax.plot(v),
    "scatter": lambda ax, v: ax.scatter(range(len(v)), v),
    "bars": lambda ax, v: ax.bar(range(len(v)), v),
    "horizontal bars": lambda ax, v: ax.barh(range(len(v)), v),
    "error bars": lambda ax, v: ax.errorbar(range(len(v)), v, yerr=abs(v) / 3),
    "band": lambda ax, v: ax.fill_between(range(len(v)), v, v + 1),
    "histogram": lambda ax, v: ax.hist(v, bins=4),
    "image": lambda ax, v: ax.imshow(np.outer(v, v)),
    "mesh": lambda ax, v: ax.pcolormesh(np.outer(v, v)),
    "boxes": lambda ax, v: ax.boxplot([v, v + 1]),
    "hexagons": lambda ax, v: ax.hexbin(v, v**2, gridsize=5),
}
VALUES = np.array([1.0, 2.5, -3.0, 4.25, 0.5])


@pytest.mark.parametrize("draw", KINDS.values(), ids=KINDS.keys())
def test_the_digest_changes_with_the_data_and_ignores_rounding_errors_and_style(draw: Callable[[Any, np.ndarray], Any]) -> None:
    changed = VALUES.copy()
    changed[3] += 0.1
    plain = figures.digest(drawn(draw, VALUES))
    assert plain != figures.digest(drawn(draw, changed))
    for error in (1e-12, -1e-12):
        assert figures.digest(drawn(draw, VALUES * (1 + error))) == plain
    figures.set_style()
    styled = drawn(draw, VALUES)
    styled.set_size_inches(3, 3)
    styled.axes[0].set_title("a title")
    styled.axes[0].set_xlabel("a label")
    for artist in (*styled.axes[0].lines, *styled.axes[0].patches, *styled.axes[0].collections):
        artist.set_alpha(0.5)
    assert figures.digest(styled) == plain


def test_the_digest_ignores_marker_shape_and_size() -> None:
    fig, axes = plt.subplots(2)
    axes[0].scatter([1, 2], [3, 4], marker="s", s=200)
    axes[1].plot([1, 2], [3, 4], "^--", ms=20)
    other, axes = plt.subplots(2)
    axes[0].scatter([1, 2], [3, 4])
    axes[1].plot([1, 2], [3, 4])
    assert figures.digest(fig) == figures.digest(other)


def test_the_digest_ignores_rounding_errors_about_zero() -> None:
    draw = KINDS["line"]
    assert figures.digest(drawn(draw, np.array([1e-17, 1.0]))) == figures.digest(drawn(draw, np.array([-1e-16, 1.0])))
    assert figures.digest(drawn(draw, np.array([1e-17, 2e-17]))) != figures.digest(drawn(draw, np.array([1e-17, 3e-17])))


def test_the_digest_sees_every_axes_and_survives_gaps() -> None:
    fig, axes = plt.subplots(2)
    empty = figures.digest(fig)
    axes[1].plot([1, np.nan, 3])
    assert figures.digest(fig) != empty


def test_a_figure_is_a_picture_with_its_digest_and_is_closed(shown: list[dict[str, Any]]) -> None:
    for _ in range(2):
        fig = drawn(KINDS["line"], VALUES)
        figures.show(fig)
    bundle, again = shown
    assert again == bundle
    assert bundle.keys() == {"image/png", "text/plain", "metadata"}
    # Stored with twice the pixels that it is shown with.
    width = Image.open(io.BytesIO(bundle["image/png"])).width
    assert bundle["metadata"]["image/png"]["width"] == width // 2 == pytest.approx(fig.get_figwidth() * figures.DPI, rel=0.1)
    assert bundle["text/plain"] == f"<figure, data {figures.digest(fig)}>"
    assert not plt.fignum_exists(fig.number)


@pytest.fixture
def frame() -> pd.DataFrame:
    index = pd.Index(["ridge|log", "GP"], name="predictor")
    return pd.DataFrame({"MAE": [0.1234, np.nan], "records": [1200, 7], "note": ["best", "<b>"]}, index=index)


def test_a_table_has_its_three_forms(frame: pd.DataFrame, shown: list[dict[str, Any]]) -> None:
    figures.show_table(frame, "What each\n    reaches.", "tbl-x")
    (bundle,) = shown
    assert bundle.keys() == {"text/markdown", "text/html", "text/plain"}
    lines = bundle["text/markdown"].splitlines()
    assert lines[:2] == [":::{table} What each reaches.", ":name: tbl-x"]
    assert lines[-1] == ":::"
    assert lines[3:-1] == [
        "| predictor | MAE | records | note |",
        "| --- | ---: | ---: | --- |",
        r"| ridge\|log | 0.12 | 1,200 | best |",
        "| GP | – | 7 | <b> |",
    ]
    assert bundle["text/plain"] == "\n".join(lines[3:-1])
    assert "<td>1,200</td>" in bundle["text/html"]
    assert "&lt;b&gt;" in bundle["text/html"]


def test_a_table_of_levels_and_decimals(shown: list[dict[str, Any]]) -> None:
    columns = pd.MultiIndex.from_tuples([("MAE", "mean"), ("MAE", "std")])
    index = pd.MultiIndex.from_tuples([("En-De", 1)], names=["task", "depth"])
    figures.show_table(pd.DataFrame([[1.0, 2.0]], index, columns), "A caption.", "tbl-y", decimals=1)
    figures.show_table(pd.DataFrame({"a": [True]}), "A caption.", "tbl-z")
    assert shown[0]["text/plain"].splitlines()[::2] == ["| task / depth | MAE mean | MAE std |", "| En-De / 1 | 1.0 | 2.0 |"]
    assert "<td>En-De / 1</td>" in shown[0]["text/html"]
    assert shown[1]["text/plain"].splitlines()[2] == "| 0 | True |"


def test_the_best_of_a_column_is_marked_and_numbers_held_as_text_stand_to_the_right(shown: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame({"MAE": [0.121, 0.119, 2.0], "tau": [np.nan, 0.5, 0.7], "share": ["58 %", "+1.2 [-1.0, +3.0]", "\u2013"]})
    figures.show_table(frame, "A caption.", "tbl-b", best={"MAE": "smallest", "tau": "largest"})
    assert shown[0]["text/plain"].splitlines()[1:] == [
        "| --- | ---: | ---: | ---: |",
        "| 0 | **0.12** | \u2013 | 58 % |",
        "| 1 | **0.12** | 0.50 | +1.2 [-1.0, +3.0] |",
        "| 2 | 2.00 | **0.70** | \u2013 |",
    ]
    assert shown[0]["text/html"].count("<strong>0.12</strong>") == 2
    # Rows of one name.
    figures.show_table(pd.DataFrame({"MAE": [0.3, 0.2]}, index=["a", "a"]), "A caption.", "tbl-c", best={"MAE": "smallest"})
    assert shown[1]["text/plain"].splitlines()[2:] == ["| a | 0.30 |", "| a | **0.20** |"]


def luminance(colour: Any) -> float:
    parts = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in mpl.colors.to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], parts))


def test_every_colour_stands_out_from_white() -> None:
    """By at least 3, what the W3C's guidelines ask of graphics; two that are known show that the formula is theirs."""
    contrast = {colour: 1.05 / (luminance(colour) + 0.05) for colour in (*figures.PALETTE, "black", "#767676")}
    assert min(contrast.values()) >= 3
    assert (contrast["black"], round(contrast["#767676"], 2)) == (pytest.approx(21), 4.54)


def test_series_have_enough_colours_and_markers() -> None:
    assert len(set(figures.MARKERS)) == len(figures.MARKERS) >= 8
    assert len(set(figures.PALETTE)) >= 8
