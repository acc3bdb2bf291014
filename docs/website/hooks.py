"""What mkdocs asks for while it builds: the pages that are made, and links as they are in the site."""

import posixpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.website import explorers, links, reference, sources


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
