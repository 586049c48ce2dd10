"""The built pages as they are seen: on phones and wide screens, light and dark, with and without scripts, by keyboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

SITE = Path(__file__).parents[1] / "_build" / "html"
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts)
WIDTHS = (390, 1280, 1920)
needs_book = pytest.mark.skipif(not SITE.is_dir(), reason="the book is not built; run make book")

MEASURE = """() => {
  const faults = [], width = document.documentElement.clientWidth, wide = document.documentElement.scrollWidth;
  if (wide > width) {
    const widest = [...document.querySelectorAll("body *")].find(node => node.getBoundingClientRect().right > width + 1);
    faults.push(`wider than the window by ${wide - width}: ${widest?.outerHTML.slice(0, 80)}`);
  }
  for (const caption of document.querySelectorAll("table caption, figcaption"))
    if (caption.getBoundingClientRect().right > width + 1) faults.push("caption cut: " + caption.textContent.trim().slice(0, 40));
  for (const box of document.querySelectorAll("div.cell details.above-input"))
    if (!box.closest("div.cell").querySelector(".cell_output")?.children.length) faults.push("a box opens on nothing");
  for (const number of document.querySelectorAll("span.pasted-text"))
    if (getComputedStyle(number).fontWeight !== getComputedStyle(number.parentElement).fontWeight)
      faults.push("bold: " + number.textContent);
  for (const root of document.querySelectorAll("div.lab"))
    if (!("on" in root.dataset) || getComputedStyle(root.querySelector(".lab-still")).display !== "none")
      faults.push("still a picture: " + root.dataset.lab);
  return faults;
}"""

# Contrasts of what an interactive figure draws, by the formula of the W3C's guidelines, as the browser resolves its colours.
CONTRASTS = """root => {
  const canvas = document.createElement("canvas").getContext("2d");
  const colour = name => {
    canvas.fillStyle = getComputedStyle(root).getPropertyValue(name).trim();
    canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255);
    const [r, g, b] = parts.map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => { const [x, y] = [colour(a), colour(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const found = {};
  for (const name of ["--blue", "--orange", "--green", "--pink", "--key", "--ink", "--soft"])
    for (const back of ["--back", "--pane"]) found[`${name} on ${back}`] = contrast(name, back);
  return found;
}"""
LABS = {"cost": "notebooks/01_search_space.html", "guess": "notebooks/04_llm_pp.html"}
LABS |= dict.fromkeys(("search", "switch"), "notebooks/09_hs_nas.html")


def looked_at(page: Page, address: str) -> list[str]:
    page.goto(address)
    return list(page.evaluate(MEASURE))


@pytest.fixture
def tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a tab with options of its own."""
    contexts = []

    def open_tab(**options: object) -> Page:
        contexts.append(browser.new_context(**options))  # type: ignore[arg-type]
        return contexts[-1].new_page()

    yield open_tab
    for context in contexts:
        context.close()


@needs_book
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit_the_window_and_hide_nothing(width: int, tab: Callable[..., Page]) -> None:
    page = tab(viewport={"width": width, "height": 900})
    found = {name: faults for name in PAGES if (faults := looked_at(page, (SITE / name).as_uri()))}
    assert found == {}


@needs_book
def test_what_is_folded_is_open_on_paper(tab: Callable[..., Page]) -> None:
    page = tab()
    for folded in (".lab-still details p", ".tag_hide-cell table", "details.sd-dropdown p:not(summary *)"):
        page.emulate_media(media="screen")
        page.goto((SITE / (LABS["guess"] if "lab" in folded else LABS["search"])).as_uri())
        assert not page.locator(folded).first.is_visible()
        page.emulate_media(media="print")
        assert page.locator(folded).first.is_visible()
    assert page.locator(".tag_hide-cell .cell_input").count()
    assert not page.locator(".tag_hide-cell .cell_input").first.is_visible()


FAULTS = {
    "": "",
    '<div style="width: 2000px">x</div>': "wider than the window",
    '<div style="overflow: auto"><table><caption>Long</caption><tr><td style="min-width: 1999px">x</td></tr></table></div>': "caption cut",
    '<div class="cell"><details class="above-input"></details></div>': "a box opens on nothing",
    '<p>It is <span class="pasted-text" style="font-weight: 700">7</span>.</p>': "bold: 7",
    '<div class="lab" data-lab="x"><div class="lab-still"></div></div>': "still a picture: x",
}


@pytest.mark.parametrize(("fault", "report"), FAULTS.items())
def test_planted_faults_are_found(fault: str, report: str, tab: Callable[..., Page], tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text(f"<!DOCTYPE html><body>{fault}</body>")
    found = looked_at(tab(viewport={"width": 1280, "height": 900}), (tmp_path / "x.html").as_uri())
    assert report in "".join(found)
    assert bool(report) == bool(found)


@needs_book
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_of_interactive_figures_stand_out(scheme: str, tab: Callable[..., Page]) -> None:
    page = tab(color_scheme=scheme)
    page.goto((SITE / LABS["cost"]).as_uri())
    found = page.locator("div.lab").first.evaluate(CONTRASTS)
    # Text needs 4.5, graphics 3; the main button's text is the page's background on its colour.
    text = ("--ink", "--soft", "--key on --back")
    assert {pair: round(value, 2) for pair, value in found.items() if value < (4.5 if pair.startswith(text) else 3)} == {}


@needs_book
@pytest.mark.parametrize("name", LABS)
def test_an_interactive_figure_without_scripts_and_by_keyboard(name: str, tab: Callable[..., Page]) -> None:
    address = (SITE / LABS[name]).as_uri()
    still = tab(java_script_enabled=False)
    still.goto(address)
    assert still.locator(f"[data-lab={name}] .lab-still svg").first.is_visible()
    assert still.locator(f"figure:has([data-lab={name}]) figcaption").inner_text().strip()
    faults: list[str] = []
    page = tab()
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url))
    page.goto(address)
    lab = page.locator(f"[data-lab={name}][data-on]")
    said, slider = lab.locator("[role=status]").first, lab.locator("input[type=range]").first
    before = said.inner_text()
    slider.focus()
    page.keyboard.press("ArrowRight")
    if name == "guess":
        page.keyboard.press("Enter")
        assert "Language model:" in said.inner_text()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.type") == "range"
    else:
        assert said.inner_text() != before
    page.emulate_media(media="print")
    assert lab.locator(".lab-still svg").first.is_visible()
    assert not lab.locator(".lab-live").is_visible()
    assert faults == []
