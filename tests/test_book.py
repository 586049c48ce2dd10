"""The built book needs no other host, has no dead link, and every page works in a browser; plain Sphinx builds it too.

Looks at `_build/html`, which `make test` builds first. Faults planted in pages of its own show that each is found.
"""

from __future__ import annotations

import functools
import html
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Page, Route
from small_book import CLAIMS

from llmpp_book.runner.notebook import Paths
from llmpp_book.runner.scorecard import read_claims, scorecard_page
from llmpp_book.runner.status import status_page

ROOT = Path(__file__).parents[1]
SITE = ROOT / "_build" / "html"
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts)
needs_book = pytest.mark.skipif(not SITE.is_dir(), reason="the book is not built; run make book")

LOADS = re.compile(
    r"""<(?:script|img|iframe|source|object|image|use|link(?![^>]*rel="(?:canonical|next|prev|search|index)"))\b[^>]*?"""
    r"""\b(?:src|href|data|srcset)="([^"]*)\""""
)


@functools.cache
def anchors(path: Path) -> set[str]:
    return set(re.findall(r'\b(?:id|name)="([^"]*)"', path.read_text(encoding="utf-8")))


def foreign_loads(site: Path) -> list[str]:
    """Return what the site's pages say that a browser should load from another host; what scripts and styles load, the browser sees."""
    found = [(path, address) for path in sorted(site.rglob("*.html")) for address in LOADS.findall(path.read_text(encoding="utf-8"))]
    return [f"{path.name}: {address}" for path, address in found if urlsplit(address.strip()).netloc]


def dead_links(site: Path) -> list[str]:
    """Return links of the site's own pages to files that are not in the site, and to anchors that are not in their page."""
    found = []
    for path in sorted(p for p in site.rglob("*.html") if "_static" not in p.parts):
        for address in dict.fromkeys(re.findall(r'<a\b[^>]*?\bhref="([^"]*)"', path.read_text(encoding="utf-8"))):
            parts = urlsplit(html.unescape(address))
            if parts.netloc or parts.scheme or address == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or (target.suffix == ".html" and parts.fragment and unquote(parts.fragment) not in anchors(target)):
                found.append(f"{path.relative_to(site)}: {address}")
    return found


@needs_book
def test_no_page_loads_from_another_host_and_every_link_leads_somewhere() -> None:
    assert len(PAGES) > 10
    assert foreign_loads(SITE) == []
    assert dead_links(SITE) == []


REPOSITORY = runpy.run_path(str(ROOT / "book" / "_ext" / "repository_links.py"))


@needs_book
def test_buttons_lead_to_the_repository_or_are_not_there() -> None:
    address = REPOSITORY["remote_address"](ROOT) or yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    pages = [page for page in PAGES if page.startswith("notebooks/")]
    assert pages
    for page in pages:
        notebook = page.removesuffix(".html") + ".ipynb"
        links = [html.unescape(link) for link in re.findall(r'<a\b[^>]*?\bhref="([^"]*)"', (SITE / page).read_text(encoding="utf-8"))]
        launch = [link for link in links if re.search(r"mybinder\.org|colab\.research", link)]
        assert len(launch) == (2 if address else 0)
        assert all(link.endswith(f"/{notebook}") for link in launch)
        assert (ROOT / notebook).is_file()
        assert [link for link in links if re.search(r"github\.com/[^/]+/[^/]+(/issues/new.*)?$", link)] == (
            [address, f"{address}/issues/new?title=Issue%20on%20page%20%2F{page}&body=Your%20issue%20content%20here."] if address else []
        )


@pytest.mark.parametrize(("remote", "configured"), [("", ""), ("", "https://github.com/a/b"), ("git@github.com:some-one/book.git", "")])
def test_buttons_are_there_where_there_is_an_address(tmp_path: Path, remote: str, configured: str) -> None:
    for words in (["init", "-q"], *([["remote", "add", "origin", remote]] if remote else [])):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    launch = {"binderhub_url": "https://mybinder.org"}
    options = {"repository_url": configured, "use_repository_button": False, "use_issues_button": False, "launch_buttons": launch}
    REPOSITORY["set_buttons"](SimpleNamespace(srcdir=str(tmp_path)), SimpleNamespace(html_theme_options=options))
    address = REPOSITORY["github_address"](remote) or configured
    assert options == {
        "repository_url": address,
        "use_repository_button": bool(address),
        "use_issues_button": bool(address),
        "launch_buttons": launch if address else {},
    }


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://github.com/some-one/a.book.git", "https://github.com/some-one/a.book"),
        ("https://user:token@github.com/some-one/book", "https://github.com/some-one/book"),
        ("git@github.com:some-one/book.git", "https://github.com/some-one/book"),
        ("ssh://git@github.com/some-one/book/", "https://github.com/some-one/book"),
        ("https://example.org/some-one/book", None),
        ("/srv/github.com/some-one/book", None),
    ],
)
def test_buttons_point_at_the_checkouts_own_github_repository(remote: str, address: str | None) -> None:
    assert REPOSITORY["github_address"](remote) == address


@needs_book
def test_every_work_has_a_label_of_its_own() -> None:
    page = (SITE / "references.html").read_text(encoding="utf-8")
    labels = [re.sub("<[^>]+>", "", label) for label in re.findall(r'<span class="label">(.*?</span></span>)', page)]
    assert all(re.fullmatch(r"\[.+, \d{4}[a-z]?\]", label) for label in labels)
    assert len(set(labels)) == len(re.findall("^@", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), flags=re.M))


# In a browser.


# What a page's own script cannot see is listened for; the rest is asked of the page once formulas are drawn.
ASK = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  const problems = [];
  for (const img of document.images) {
    img.loading = "eager";
    await img.decode().catch(() => {});
    if (!img.naturalWidth) problems.push("image not drawn: " + img.src);
    if (!(img.getAttribute("alt") || "").trim()) problems.push("image without alt: " + img.src);
  }
  for (const math of document.querySelectorAll(".math"))
    if (!math.querySelector("mjx-container")) problems.push("formula not drawn: " + math.textContent.trim());
  for (const error of document.querySelectorAll("mjx-merror, [data-mjx-error]")) problems.push("formula in error: " + error.textContent);
  const body = document.body.cloneNode(true);
  body.querySelectorAll("pre, code, script, style, mjx-container").forEach(node => node.remove());
  const raw = body.textContent.match(/\\$\\$|\\\\[(\\[][^]{0,40}/);
  if (raw) problems.push("raw formula: " + raw[0]);
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) problems.push(`wider than the window: ${root.scrollWidth} > ${root.clientWidth}`);
  return problems;
}"""


def problems(page: Page, address: str) -> list[str]:
    """Open an address and return all that is wrong with the page."""
    found: list[str] = []
    here = urlsplit(address).netloc

    def guard(route: Route) -> None:
        if urlsplit(route.request.url).netloc in (here, ""):
            route.continue_()
        else:
            found.append(f"asks another host: {route.request.url}")
            route.abort()

    page.route("**/*", guard)
    page.on("console", lambda message: found.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(f"page error: {error}"))
    page.on("requestfailed", lambda request: found.append(f"request failed: {request.url}"))
    page.on("response", lambda response: found.append(f"{response.status}: {response.url}") if response.status >= 400 else None)
    page.goto(address, wait_until="networkidle")
    return found + page.evaluate(ASK)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


@needs_book
@pytest.mark.parametrize("name", PAGES)
def test_page_works_in_a_browser(name: str, page: Page, serve: functools.partial[str]) -> None:
    assert problems(page, urljoin(serve(SITE), name)) == []


@needs_book
def test_search_finds_without_a_network(page: Page, serve: functools.partial[str]) -> None:
    # Excerpts are the pages' text, in which formulas are not drawn.
    found = problems(page, urljoin(serve(SITE), "search.html?q=supernet"))
    assert [problem for problem in found if not problem.startswith("raw formula")] == []
    page.wait_for_selector("#search-results li a")
    assert "index.html" in page.locator("#search-results li a").evaluate_all("links => links.map(link => link.href).join()")


# The checks themselves, and plain Sphinx.

CLEAN = '<html><head><link rel="icon" href="data:,"></head><body><p id="a">Text</p>{}</body></html>'
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


def test_foreign_loads_and_dead_links_are_found(tmp_path: Path) -> None:
    live = f'<a href="#a">1</a><a href="x.html?q=1#a">2</a><a href="#">3</a><a href="https://example.org/y">4</a><img alt="" src="{PIXEL}">'
    dead = ["y.html", "x.html#b", "#b"]
    foreign = [
        '<script src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img alt="x" src="http://c.example/x">',
    ]
    (tmp_path / "x.html").write_text(CLEAN.format(live + "".join(f'<a href="{address}">5</a>' for address in dead) + "".join(foreign)))
    assert dead_links(tmp_path) == [f"x.html: {address}" for address in dead]
    assert len(foreign_loads(tmp_path)) == len(foreign)


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("", ""),
        ('<script>console.error("oh")</script>', "console: oh"),
        ('<script>throw new Error("oh")</script>', "page error: oh"),
        ('<script>fetch("https://cdn.example/x.js").catch(() => {})</script>', "asks another host: https://cdn.example/x.js"),
        ('<img alt="x" src="y.png">', "image not drawn"),
        (f'<img src="{PIXEL}">', "image without alt"),
        ('<span class="math">\\(x\\)</span>', "formula not drawn"),
        ("<p>It is $$x$$.</p>", "raw formula: $$"),
        ("<p>It is \\(x\\).</p>", "raw formula: \\(x"),
        ('<div style="width: 2000px">x</div>', "wider than the window"),
    ],
)
def test_browser_finds_faults(tmp_path: Path, page: Page, serve: functools.partial[str], fault: str, report: str) -> None:
    (tmp_path / "x.html").write_text(CLEAN.format(fault))
    found = "\n".join(problems(page, urljoin(serve(tmp_path), "x.html")))
    assert report in found
    assert bool(report) == bool(found)


def sphinx(folder: Path) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "_config.yml", folder)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "book", "out"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_plain_sphinx_builds_the_same_pages_without_a_warning(tmp_path: Path) -> None:
    """With the stored chapters, and without the page that imports the whole module."""
    book, paths = tmp_path / "book", Paths(tmp_path)
    shutil.copytree(ROOT / "book", book, ignore=shutil.ignore_patterns("notebooks", "generated", "__pycache__"))
    shutil.copytree(ROOT / "notebooks", paths.pages)
    paths.generated.mkdir()
    (paths.generated / "status.md").write_text(status_page(paths, {path.stem: None for path in paths.pages.iterdir()}))
    paths.claims.write_text(CLAIMS)
    (paths.generated / "scorecard.md").write_text(scorecard_page(paths, read_claims(paths.claims), {}))
    done = sphinx(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Table 1" in (tmp_path / "out" / "notebooks" / "01_search_space.html").read_text(encoding="utf-8")
    assert dead_links(tmp_path / "out") == []
    assert foreign_loads(tmp_path / "out") == []


def test_a_book_without_its_chapters_is_not_built(tmp_path: Path) -> None:
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, tmp_path / "book" / name)
    for name in ("conf.py", "_toc.yml", "references.bib"):
        shutil.copy(ROOT / "book" / name, tmp_path / "book")
    (tmp_path / "book" / "index.md").write_text("# Title\n")
    done = sphinx(tmp_path)
    assert done.returncode
    assert "toctree contains reference to nonexisting document 'notebooks/01_search_space'" in done.stderr
