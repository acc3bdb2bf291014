"""What type checkers are told: every public function says what it takes and returns, and Any stands where it is meant."""

import ast
import importlib
import inspect
import typing
from pathlib import Path

import pytest

import maskloom as loom
from tests.test_surface import NAMESPACES, PACKAGE

SPACES = ["maskloom", *(f"maskloom.{name}" for name in NAMESPACES), "maskloom.integrations.transformers"]
MEANT = {
    "Batch.__init__": "fields of the user's own",
    "Collator.__call__": "a Batch, or the dict of another library: who made the collator knows which",
}
"""Where Any is meant, and why."""


def public_functions(space):
    """The functions of a namespace, and those methods of its classes that a user calls, by name."""
    module = importlib.import_module(space)
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from methods_of(value)
        elif inspect.isfunction(value):
            yield name, value


def methods_of(kind):
    for name, value in vars(kind).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        is_public = not name.startswith("_") or name in ("__init__", "__call__")
        if is_public and inspect.isfunction(function) and function.__module__.startswith("maskloom"):
            yield f"{kind.__name__}.{name}", function


def holes(function):
    """Parameters, or the return, that have no type or one with Any in it; of an overloaded function those of its overloads."""
    for one in typing.get_overloads(function) or [function]:
        parameters = list(inspect.signature(one).parameters.values())
        named = {each.name: each.annotation for each in parameters if each.name not in ("self", "cls")}
        named["return"] = one.__annotations__.get("return", inspect.Parameter.empty)
        for name, annotation in named.items():
            if annotation is inspect.Parameter.empty or "typing.Any" in str(annotation):
                yield name


@pytest.mark.parametrize("space", SPACES)
def test_public_functions_are_typed_without_any(space):
    found = {name: list(holes(function)) for name, function in public_functions(space)}
    assert found
    assert {name: missing for name, missing in found.items() if missing and name not in MEANT} == {}


def test_what_is_meant_is_still_there():
    found = {name: list(holes(function)) for space in SPACES for name, function in public_functions(space)}
    assert [name for name in MEANT if not found[name]] == []


def test_a_hole_is_seen():
    def made(x: int, y, *, z: typing.Any = 0) -> list[typing.Any]:
        return [x, y, z]

    assert list(holes(made)) == ["y", "z", "return"]


def test_type_checkers_see_the_masks_that_there_are():
    """`masks/__init__.pyi` names every room of patterns, and every other name of the namespace."""
    tree = ast.parse((PACKAGE / "masks" / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    named = {alias.asname for node in imports for alias in node.names if alias.name != "*"} - {"patterns"}
    rooms = {node.module for node in imports if node.names[0].name == "*"}
    assert rooms == {room.__name__ for room in loom.masks.patterns.ROOMS}
    assert named == set(loom.masks.__all__) - set(loom.masks.patterns.__all__)


def test_the_package_says_that_it_is_typed():
    assert (Path(loom.__file__).parent / "py.typed").exists()
