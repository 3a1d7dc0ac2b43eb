"""The layers of the house: an import only ever points to the left."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "invite_client"

LAYERS = [
    {"errors", "policy", "version", "clock"},
    {"spec"},
    {"observations"},
    {"interfaces", "deadlines", "single_flight", "slots"},
    {"net", "stores", "signing_keys"},
    {"resolver", "keyring", "retrying", "backoff", "bulk"},
    {"federation", "guards", "sending"},
    {"client", "journal"},
    {"__init__"},
    {"contrib", "testing", "cli"},
]

HOMES = {
    "aiohttp": {"net", "testing"},
    "aiohappyeyeballs": {"net"},
    "dns": {"net"},
    "dnslib": {"testing"},
    "trustme": {"testing"},
    "tenacity": {"retrying"},
    "signedjson": {"spec"},
    "nacl": {"spec"},
    "orjson": {"spec"},
    "prometheus_client": {"contrib"},
    "opentelemetry": {"contrib"},
    "click": {"cli"},
    "rich": {"cli"},
    "uvloop": {"cli"},
    "yaml": {"cli"},
    "psycopg": {"stores"},
    "psycopg_pool": {"stores"},
    "procrastinate": {"contrib"},
}

# Modules that read or write something outside the process, or wait, or draw lots.
IO = {
    "aiohttp", "asyncio", "dns", "http", "io", "logging", "multiprocessing", "os", "pathlib",
    "random", "secrets", "select", "shutil", "socket", "sqlite3", "ssl", "subprocess", "sys",
    "tempfile", "tenacity", "threading", "time",
}  # fmt: skip

# The one default that looks at a clock: `Invite.build` without `origin_server_ts`.
IO_ALLOWED = {("spec/invite_event.py", "time")}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the absolute names of everything that a module imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import on line {node.lineno}"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str:
    """invite_client.net.http -> net; invite_client -> __init__."""
    pieces = name.split(".")
    known = set().union(*LAYERS)
    return pieces[1] if len(pieces) > 1 and pieces[1] in known else "__init__"


def layer(name: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if name in names)


def own_part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
class TestEveryModule:
    def test_stands_in_a_layer(self, path: Path) -> None:
        assert own_part(path) in set().union(*LAYERS)

    def test_imports_only_from_the_left(self, path: Path) -> None:
        mine = layer(own_part(path))
        wrong = {
            name
            for name in imports(path)
            if name.split(".")[0] == "invite_client"
            and not (name == "invite_client" and own_part(path) == "__init__")
            and layer(part(name)) > mine
        }

        assert set() == wrong

    def test_uses_a_dependency_only_in_its_home(self, path: Path) -> None:
        homeless = {
            name
            for name in imports(path)
            if own_part(path) not in HOMES.get(name.split(".")[0], {own_part(path)})
        }

        assert set() == homeless

    def test_in_spec_does_no_io(self, path: Path) -> None:
        where = path.relative_to(PACKAGE).as_posix()
        if not where.startswith("spec/"):
            return
        found = {name.split(".")[0] for name in imports(path)} & IO

        assert set() == {name for name in found if (where, name) not in IO_ALLOWED}

    def test_does_not_compare_room_versions(self, path: Path) -> None:
        """Rules are traits of a version; to add a version is to add a row."""
        if path.name == "room_versions.py":
            return
        suspicious = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Compare)
            and any(
                "version" in ast.unparse(side).lower() and "tls" not in ast.unparse(side).lower()
                for side in (node.left, *node.comparators)
            )
            and any(
                isinstance(side, ast.Constant) and str(side.value).isdigit()
                for side in (node.left, *node.comparators)
            )
        ]

        assert [] == suspicious
