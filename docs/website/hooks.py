"""What mkdocs asks for while it builds: the pages that are made, and links as they are in the site."""

import posixpath
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.website import explorers, links, reference, sources

DOCS = Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The way through the site, without pages that are not there yet."""
    made = {*reference.pages(), *(place for place, _ in sources.sources())}
    config.nav = present(config.nav, made)
    return config


def present(nav: Any, made: set[str]) -> Any:
    """A nav with the pages that exist."""
    if isinstance(nav, list):
        return [kept for kept in (present(entry, made) for entry in nav) if kept]
    if isinstance(nav, dict):
        kept = {title: present(entry, made) for title, entry in nav.items()}
        return {title: entry for title, entry in kept.items() if entry}
    return nav if nav in made or (DOCS / nav).exists() else None


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The API, and what pages show of the repository beside docs/."""
    for place, text in [*reference.pages().items(), *sources.sources(), *explorers.pages()]:
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A page's links lead to what stands in the site; those of made pages do so already."""
    if page.file.generated_by:
        return links.unescaped(markdown)
    place = page.file.src_uri
    markdown = explorers.linked(markdown) if place == "masks.md" else markdown
    return links.unescaped(links.rewritten(markdown, posixpath.join("docs", posixpath.dirname(place)), place))
