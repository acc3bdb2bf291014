"""A page to explore a mask in a browser, and the parts that such pages are made of."""

from maskloom.show.explorer.page import Page, page, parts
from maskloom.show.explorer.parts import Parts, script, style

__all__ = ["page", "Page", "parts", "Parts", "script", "style"]
