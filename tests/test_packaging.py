"""What is built from this, and what its metadata promise: `.ci/installs` installs it for real."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLING = (ROOT / "docs" / "installing.md").read_text("utf-8")
NOT_FOR_USERS = {"all", "dev", "docs", "queue"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that this makes; without a network, so with what is here to build it."""
    pytest.importorskip("hatchling", reason="needs hatchling, which the extra `dev` brings")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    (built,) = folder.iterdir()
    return built


def test_the_wheel_is_the_package_and_what_stands_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "invite_client").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert "invite_client/py.typed" in package
    assert package | {"pytest_invite_client.py", "invite_client_command.py"} == names


def test_its_metadata_are_such_as_an_index_takes(wheel: Path) -> None:
    metadata = pytest.importorskip("packaging.metadata").Metadata
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        raw = archive.read(name)
        (entry_points,) = (n for n in archive.namelist() if n.endswith("/entry_points.txt"))
        commands = archive.read(entry_points).decode()

    read = metadata.from_email(raw, validate=True)
    assert "text/markdown" == read.description_content_type
    assert read.description.strip() == (ROOT / "README.md").read_text("utf-8").strip()
    assert "invite-client = invite_client_command:main" in commands


def test_the_extra_of_all_is_all_that_a_user_may_want() -> None:
    (all_of_it,) = EXTRAS["all"]

    assert set(EXTRAS) - NOT_FOR_USERS == set(all_of_it.partition("[")[2].strip("]").split(","))


def test_the_table_of_extras_is_that_of_the_project() -> None:
    table = INSTALLING.partition("## Extras")[2].partition("## Versions")[0]

    assert list(EXTRAS) == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_extras_that_are_named_are_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    sources = [*(ROOT / "invite_client").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    for path in (*pages, *sources):
        for names in re.findall(
            r"(?:pip install|needs: ?).*'(?:invite_client|\.)\[([\w,]+)\]", path.read_text("utf-8")
        ):
            assert set() == set(names.split(",")) - set(EXTRAS), path


def test_whatever_is_needed_has_a_lowest_version() -> None:
    """Which `.ci/versions` tries: one that nobody has tried is no promise."""
    needed = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    without = {one for one in needed if not re.match(r"[\w.-]+(\[\w+\])?>=", one)}

    assert {"types-PyYAML"} == {one for one in without if not one.startswith("invite_client[")}


def test_the_versions_of_python_are_those_that_were_tried() -> None:
    declared = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    (row,) = re.findall(
        r"^\| CPython \| (.*) to (.*) \| (.*), on Linux \|$", INSTALLING, re.MULTILINE
    )

    assert f">={declared[0]}" == PROJECT["requires-python"]
    assert (declared[0], declared[-1]) == row[:2]
    assert declared == re.findall(r"(3\.\d+)\.\d+", row[2])
