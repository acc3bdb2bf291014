"""The site builds strictly; its links, anchors and pictures are there, and it loads nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="the site needs maskloom[site]")

import maskloom as loom
from docs import make_masks
from docs.website import docstrings, hooks, links, reference, sources
from maskloom.integrations import transformers
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
    """The built site."""
    place = tmp_path_factory.mktemp("site")
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


def test_pages_that_are_not_there_yet_are_left_out_of_the_menu():
    nav = [{"A": "index.md"}, {"B": [{"C": "no_such_page.md"}]}, {"D": ["no_such_page.md", "made.md"]}]
    assert hooks.present(nav, {"made.md"}) == [{"A": "index.md"}, {"D": ["made.md"]}]


def test_docstrings_are_read_as_markdown():
    read = docstrings.Docstrings()
    text = "A drawing::\n\n    x\n\nSee `window`, ``window``, `nothing_public` and `causal`.\n\n::\n\n    y\n"
    anchor = reference.anchors()["window"]
    assert read.as_markdown(text, "causal") == (
        f"A drawing:\n\n    x\n\nSee [`window`][{anchor}], ``window``, `nothing_public` and `causal`.\n\n\n\n    y\n"
    )
