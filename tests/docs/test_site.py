"""The site builds strictly; its links, anchors and pictures are there, and it loads nothing from elsewhere."""

import fcntl
import functools
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="the site needs maskloom[site]")

import maskloom as loom
from docs import make_masks
from docs.website import docstrings, links, reference, sources
from maskloom.integrations import transformers
from tests.show.explorer import browser
from tests.test_surface import NAMESPACES

ROOT = Path(__file__).parents[2]


@dataclass
class Found:
    """What a page has: its anchors, where its links lead, and what a browser loads with it."""

    anchors: set[str] = field(default_factory=set)
    leads: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)


class Reader(HTMLParser):
    """Reads a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Found()

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.found.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag in {"a", "area"} and "href" in given:
            self.found.leads.append(given["href"])
        if tag == "link" and given.get("rel") not in {"canonical", "prev", "next"}:
            self.found.loads.append(given["href"])
        self.found.loads += [given[name] for name in ("src", "data", "poster") if given.get(name)]


def read(page: Path) -> Found:
    reader = Reader()
    reader.feed(page.read_text())
    return reader.found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, which the workers of a run share."""
    run, base = os.environ.get("PYTEST_XDIST_TESTRUNUID"), tmp_path_factory.getbasetemp()
    place = base.parent / f"site-{run}" if run else base / "site"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            built(place.with_suffix(".part")).rename(place)
    return place


def built(place: Path) -> Path:
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return place


@pytest.fixture(scope="module")
def pages(site):
    return {page: read(page) for page in site.rglob("*.html")}


def is_elsewhere(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def target_of(page: Path, link: str) -> tuple[Path, str]:
    parts = urlsplit(link)
    return ((page.parent / unquote(parts.path)).resolve() if parts.path else page), unquote(parts.fragment)


def test_every_link_and_anchor_is_there(site, pages):
    broken = []
    for page, found in pages.items():
        if page.name == "404.html":  # served at any depth, with links from the root
            continue
        for link in filter(lambda link: not is_elsewhere(link), found.leads):
            target, anchor = target_of(page, link)
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for page, found in pages.items():
        assert [link for link in found.loads if is_elsewhere(link) and not link.startswith("data:")] == [], page
        for link in found.loads if page.name != "404.html" else []:
            assert link.startswith("data:") or target_of(page, link)[0].exists(), f"{page}: {link}"
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//", sheet.read_text()) == [], sheet


def test_every_public_name_has_its_place_in_the_api(site, pages):
    spaces = [loom, *(getattr(loom, name) for name in NAMESPACES), transformers]
    anchors = set().union(*(pages[site / "api" / f"{page}.html"].anchors for page in reference.PAGES))
    for space in spaces:
        for name in set(space.__all__) - set(NAMESPACES):
            entry = reference.Entry(space.__name__, name, getattr(space, name))
            assert {entry.public, entry.defined} & anchors, entry.public
            assert f">{name}</code>" in (site / "api" / "index.html").read_text(), entry.public


def test_every_page_can_be_found_in_the_menu(pages, site):
    leads = {target_of(site / "index.html", link)[0] for link in pages[site / "index.html"].leads}
    for page in (ROOT / "docs").rglob("*.md"):
        assert site / page.relative_to(ROOT / "docs").with_suffix(".html") in leads, page


def test_each_mask_has_a_page_to_explore(site, pages):
    leads = {target_of(site / "masks.html", link)[0] for link in pages[site / "masks.html"].leads}
    for name, example in make_masks.named().items():
        page = site / "gallery" / f"{name}.html"
        assert page in leads and page.stat().st_size < 100_000
        assert [link for link in pages[page].loads if link.endswith(".js")] == ["theme.js", "explorer.js"]
        data = re.search(r'<script type="application/json">(.*?)</script>', page.read_text())
        assert json.loads(data[1])["title"] == example.expression
    assert (site / "gallery" / "explorer.js").stat().st_size < 100_000


def visit(tab, address, width=1280):
    """Open a page at a width, and forget what was said and asked for before."""
    tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    tab.said.clear()
    tab.requests.clear()
    tab.loaded = False
    tab.ask("Page.navigate", url=address)
    tab._until_loaded()


@browser.needs_chromium
def test_a_browser_loads_nothing_from_elsewhere_and_no_page_is_wider_than_a_phone(site):
    with browser.opened() as tab:
        for page in sorted((ROOT / "docs").rglob("*.md")):
            visit(tab, (site / page.relative_to(ROOT / "docs").with_suffix(".html")).as_uri(), width=420)
            assert tab.requests and [link for link in tab.requests if not link.startswith(("file:", "data:"))] == [], (
                page
            )
            assert tab.run("document.documentElement.scrollWidth") <= 420, page
            broken = (
                "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
            )
            assert tab.run(broken) == [], page


@browser.needs_chromium
def test_the_search_finds_a_mask(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with browser.opened() as tab:
            visit(tab, f"http://127.0.0.1:{server.server_port}/index.html?q=sinks")
            found = tab.run(
                "new Promise(done => { const look = () => { const links = [...document.querySelectorAll("
                "'.md-search-result__link')]; links.length ? done(links.map(link => link.href)) : setTimeout(look, 50); }; "
                "look(); })"
            )
            assert any("api/masks.html" in link or "masks.html" in link for link in found)
            assert not any("/source/" in link for link in found)  # sources are not searched
    finally:
        server.shutdown()


def test_links_to_what_lies_outside_become_links_to_pages():
    text = (
        "[a](../README.md#x) ![b](pictures/p.png) [c](notes/n.md)\n```md\n[d](../README.md)\n```\n[e](../examples/lm)"
    )
    assert links.outside(text, "docs") == {"README.md", "examples/lm"}
    assert links.rewritten(text, "docs", "page.md") == (
        "[a](project/readme.md#x) ![b](pictures/p.png) [c](notes/n.md)\n```md\n[d](../README.md)\n```\n"
        "[e](source/examples/lm/index.md)"
    )
    assert links.rewritten("[r](../../benchmarks/results/x.csv)", "docs/notes", "notes/n.md") == (
        "[r](../source/benchmarks/results/x.csv)"
    )
    assert links.rewritten("[d](docs/blocks.md)", "", "project/readme.md") == "[d](../blocks.md)"
    assert (
        links.rewritten("[d](https://example.org) [e](#here)", "docs", "a.md") == "[d](https://example.org) [e](#here)"
    )


def test_bars_in_code_of_tables_have_no_backslash():
    assert links.unescaped("| `a \\| b` \\| | `c` |\n`d \\| e`\n") == "| `a | b` \\| | `c` |\n`d \\| e`\n"


def test_anchors_are_those_of_a_forge():
    assert links.slug("How it is run, and why") == "how-it-is-run-and-why"
    assert links.slug("`a & b`: both") == "a--b-both"


def test_sources_stand_as_pages():
    found = dict(sources.sources())
    assert "````python\n" in found["source/examples/article.py.md"]
    assert "(model.py.md)" in found["source/examples/lm/index.md"]
    assert found["source/benchmarks/results/train_lm.csv"] == (ROOT / "benchmarks/results/train_lm.csv").read_text()


def test_docstrings_are_read_as_markdown():
    read = docstrings.Docstrings()
    text = "A drawing::\n\n    x\n\nSee `window`, ``window``, `nothing_public` and `causal`.\n\n::\n\n    y\n"
    anchor = reference.anchors()["window"]
    assert read.as_markdown(text, "causal") == (
        f"A drawing:\n\n    x\n\nSee [`window`][{anchor}], ``window``, `nothing_public` and `causal`.\n\n\n\n    y\n"
    )


def test_errors_that_stand_in_one_paragraph_are_listed_one_by_one():
    text = "What.\n\nRaises:\n    TypeError: not an int. ValueError: below 1, or\n        above 2. KeyError, OSError: else.\n\nMore.\n"
    assert docstrings.Docstrings().as_markdown(text) == (
        "What.\n\nRaises:\n    TypeError: not an int.\n    ValueError: below 1, or\n        above 2.\n"
        "    KeyError, OSError: else.\n\nMore.\n"
    )
