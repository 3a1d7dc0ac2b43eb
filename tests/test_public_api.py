"""The public API, guarded against change by accident: `tests/public_api.txt` lists all of it.

To change it on purpose, run this file, and commit what it writes:

    python tests/test_public_api.py
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import enum
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

LISTING = Path(__file__).parent / "public_api.txt"
MODULES = ("invite_client", "invite_client.interfaces", "invite_client.observations")
PACKAGES = ("invite_client.stores", "invite_client.contrib")
"""Of which every module is public."""
MODULES_AFTER = ("invite_client.testing",)
_LONGEST_DEFAULT = 60


def public_modules() -> Iterator[ModuleType]:
    yield from map(importlib.import_module, MODULES)
    for name in PACKAGES:
        package = importlib.import_module(name)
        yield package
        for module in pkgutil.iter_modules(package.__path__, f"{name}."):
            yield importlib.import_module(module.name)
    yield from map(importlib.import_module, MODULES_AFTER)


def listing() -> str:
    lines: list[str] = []
    for module in public_modules():
        lines.append(f"# {module.__name__}\n")
        for name in sorted(getattr(module, "__all__", ())):
            lines += described(name, getattr(module, name))
            lines.append("")
    return "\n".join(lines)


def described(name: str, thing: object) -> Iterator[str]:
    match thing:
        case type():
            yield from class_described(name, thing)
        case _ if inspect.isfunction(thing):
            yield f"{kind_of(thing)} {name}{signature(thing)}"
        case str() | int() | float():
            yield f"{name}: {type(thing).__name__}"
        case _ if type(thing).__module__ in ("types", "typing", "collections.abc"):
            # An alias: its parts, in an order that does not depend on the version of Python.
            members = sorted(re.findall(r"[\w.]+", str(thing)))
            yield f"{name} = {', '.join(members)}"
        case _:
            yield f"{name}: {type(thing).__name__}"


def class_described(name: str, kind: type) -> Iterator[str]:
    bases = [base.__name__ for base in kind.__bases__ if base is not object]
    yield f"class {name}({', '.join(bases)})" if bases else f"class {name}"
    if issubclass(kind, enum.Enum):
        for member in kind:
            yield f"    {member.name} = {member.value!r}"
        return
    is_dataclass = dataclasses.is_dataclass(kind)
    fields = dataclasses.fields(kind) if is_dataclass else ()
    for field in fields:
        default = shown_default(field)
        named = "" if not field.kw_only else "*, "
        yield f"    {named}{field.name}: {field.type}{default}"
    is_protocol = getattr(kind, "_is_protocol", False)
    if "__init__" in vars(kind) and not is_dataclass and not is_protocol:
        yield f"    def __init__{signature(kind.__init__)}"  # type: ignore[misc]
    names = {field.name for field in fields}
    for member, value in sorted(vars(kind).items()):
        if member.startswith("_") and member not in ("__aenter__", "__aiter__", "__call__"):
            continue
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if isinstance(plain, property):
            yield f"    {member}: property"
        elif inspect.isfunction(plain):
            made = f"@{type(value).__name__} " if plain is not value else ""
            yield f"    {made}{kind_of(plain)} {member}{signature(plain)}"
        elif member not in names:
            yield f"    {member}"
    for member, annotation in sorted(inspect.get_annotations(kind).items()):
        if member not in names and member not in vars(kind) and not member.startswith("_"):
            yield f"    {member}: {annotation}"


def shown_default(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {_Text(shortened(field.default))}"
    return "" if field.default_factory is dataclasses.MISSING else " = …"


def kind_of(function: object) -> str:
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    return "async def" if is_async else "def"


def signature(function: object) -> str:
    found = inspect.signature(function)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(
            annotation=shown(parameter.annotation, str), default=shown(parameter.default, shortened)
        )
        for parameter in found.parameters.values()
    ]
    returned = shown(found.return_annotation, str)
    return str(found.replace(parameters=parameters, return_annotation=returned))


def shown(part: object, in_words: Callable[[object], str]) -> object:
    return part if part is inspect.Parameter.empty else _Text(in_words(part))


def shortened(default: object) -> str:
    """A default as it is listed: short, and without addresses in memory."""
    if dataclasses.is_dataclass(default):
        return f"{type(default).__name__}(…)"
    text = getattr(default, "__name__", None) or repr(default)
    return text if len(text) <= _LONGEST_DEFAULT else f"{text[:_LONGEST_DEFAULT]}…"


class _Text(str):
    """What `inspect` shows as it is: annotations are strings already."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def test_the_public_api_is_the_one_that_is_listed() -> None:
    expected, actual = LISTING.read_text("utf-8"), listing()

    changed = "\n".join(
        difflib.unified_diff(
            expected.splitlines(), actual.splitlines(), "listed", "found", lineterm="", n=2
        )
    )
    assert not changed, (
        f"the public API has changed:\n{changed}\n"
        "If that is meant, run `python tests/test_public_api.py`, commit what it writes, "
        "and tell in CHANGELOG.md what users must know."
    )


@pytest.mark.parametrize("module", MODULES)
def test_all_of_it_is_used_where_types_are_checked(module: str) -> None:
    used: set[str] = set()
    for path in (Path(__file__).parent / "typing").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == module:
                used |= {alias.name for alias in node.names}

    assert set() == set(importlib.import_module(module).__all__) - used


if __name__ == "__main__":
    LISTING.write_text(listing(), "utf-8")
    print(f"{LISTING} is written: look at its diff before you commit it")
