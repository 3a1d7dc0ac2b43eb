"""What the documentation says is so: its code runs, and what it names is there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from invite_client import errors, policy
from invite_client.errors import CountersignatureProblem, Delivery, InviteError, Stage

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "invite_client"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)
OWN_RUNNER = {"testing.md"}  # its blocks are tests: tests/testing/test_docs.py
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def every_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=name)


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(page.read_text("utf-8")) if kind == language]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text("utf-8"))


# --- Code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in OWN_RUNNER and blocks(page, "python")],
    ids=name,
)
def test_python_runs_as_it_stands(page: Path) -> None:
    done = run_page(page)

    assert 0 == done.returncode, done.stderr


def test_each_program_of_the_embedding_guide_runs_in_an_empty_file(tmp_path: Path) -> None:
    for number, program in enumerate(blocks(ROOT / "docs" / "embedding.md", "python")):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = folder / "program.py"
        file.write_text(program)
        for _ in range(2):  # what it has left in its folder is there the next time
            command = [sys.executable, "-W", "error", file]
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
            )
            assert 0 == done.returncode, f"{program}\n{done.stderr}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```python\nfrom invite_client import Nothing\n```", "ImportError"),
        ("```python\nimport sys\nsys.exit(1)\n```", "exit code 1"),
        ("<!-- compiled only: why -->\n\n```python\nimport\n```", "SyntaxError"),
        ("```python\nimport os\n```\n\n<!-- run: assert not os.name -->\n", "AssertionError"),
        ("```python\nprint(1)\n```\n\n<!-- prints -->\n\n```text\n2\n```\n", "printed was\n1"),
        ("```python\nx = 1\n```\n\n```python\nimport os\nprint(x)\n```", "NameError"),
    ],
)
def test_a_page_that_is_wrong_is_found(tmp_path: Path, text: str, says: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run_page(page)

    assert 1 == done.returncode
    assert says in done.stderr


def run_page(page: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests" / "docs_page.py", page],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@every_page()
def test_shell_calls_commands_and_options_that_there_are(page: Path) -> None:
    import click

    from invite_client.cli.app import COMMANDS, _group

    context = _group.make_context("invite-client", [], resilient_parsing=True)
    text = "".join(blocks(page, "sh")).replace("\\\n", " ")
    for line in re.findall(r"^\s*(?:\S*/)?invite-client (.*)$", text, re.MULTILINE):
        words = shlex.split(line.partition("|")[0].partition(">")[0], comments=True)
        words = [word for word in words if word != "--debug"]
        assert words[0] in COMMANDS, line
        command = _group.get_command(context, words[0])
        if isinstance(command, click.Group):
            command = command.get_command(context, words[1])
        assert command is not None, line
        known = {option for parameter in command.params for option in parameter.opts}
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert set() == asked - known - {"--help"}, line


# --- Names --------------------------------------------------------------------------------------

FILE = re.compile(r"`([\w./-]+(?:\.(?:py|md|json|toml|yml|txt)|/))(?::\s+([\w.]+))?`")
"""```spec/x.py``` or ```spec/x.py: name```, or a folder."""
WHERE = (ROOT, PACKAGE, ROOT / "docs")
NOT_OURS = re.compile(
    r"(^|/)(homeserver\.yaml|conf\.d/|ca\.pem|\w*\.?(request|requests|reply|room|keys)\.(json|txt)|"
    r"users\.txt|_matrix/.*|\.well-known/.*)$"
)


def find(path: str) -> Path | None:
    return next((base / path for base in WHERE if (base / path).exists()), None)


def defined(path: Path) -> set[str]:
    """Functions, classes, their members, and constants of a module: ``name``, ``Class.member``."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.ClassDef():
                    found.add(prefix + node.name)
                    collect(node.body, f"{prefix}{node.name}.")
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    found.add(prefix + node.name)
                case ast.Assign():
                    found.update(prefix + t.id for t in node.targets if isinstance(t, ast.Name))
                case ast.AnnAssign(target=ast.Name() as target):
                    found.add(prefix + target.id)

    collect(ast.parse(path.read_text("utf-8")).body, "")
    return found


@every_page()
def test_files_and_what_is_in_them_are_there(page: Path) -> None:
    for path, inside in FILE.findall(prose(page)):
        if NOT_OURS.search(path) or path.startswith("/"):
            continue
        there = find(path)
        assert there is not None, path
        if inside:
            assert inside in defined(there), f"{path}: {inside}"


def settings() -> dict[str, object]:
    """Every field of `Policy`, as errors and pages call them, with its default."""
    defaults = policy.Policy()
    found: dict[str, object] = {}
    for part in policy.Policy.__dataclass_fields__:
        value = getattr(defaults, part)
        if isinstance(value, str):
            found[part] = value
        else:
            found |= {f"{part}.{name}": getattr(value, name) for name in value.__slots__}
    return found


@every_page()
def test_settings_are_those_of_the_policy(page: Path) -> None:
    parts = "|".join(part for part in policy.Policy.__dataclass_fields__ if part != "fallback")
    named = set(re.findall(rf"`(?:Policy\.)?((?:{parts})\.[a-z_]+)`", prose(page)))
    files = {name for name in named if name.endswith((".json", ".py"))}

    assert set() == named - files - set(settings())


def test_the_table_of_settings_is_that_of_the_policy() -> None:
    rows = {row[0]: row[1] for row in table(ROOT / "docs" / "operating.md", "setting")}

    assert list(settings()) == list(rows)
    in_words = {
        "servers.allowed": "all",
        "tls.ca_file": "the system's",
        "dns.nameservers": "the system's",
    }
    for setting, default in settings().items():
        match default:
            case float():
                expected = f"{default:.10g}"
            case None | ():
                expected = "none"
            case _:
                expected = getattr(default, "name", str(default))
        assert in_words.get(setting, expected) == rows[setting], setting


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics import MetricWrapperBase

    from invite_client.contrib.prometheus import PrometheusObserver

    registry = CollectorRegistry()
    found = {
        f"{metric._name}{'_total' if metric._type == 'counter' else ''}": set(metric._labelnames)
        for metric in vars(PrometheusObserver(registry)).values()
        if isinstance(metric, MetricWrapperBase)
    }
    rows = table(ROOT / "docs" / "operating.md", "metric")

    assert found == {row[0]: set(filter(None, row[1].split(", "))) for row in rows}


# --- Links --------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        text = unicodedata.normalize("NFKD", re.sub(r"[`*]", "", heading))
        text = text.encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()))
    return found


@every_page()
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        # The site knows only what is in docs/.
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_navigation() -> None:
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}

    assert pages == set(re.findall(r"[\w/.-]+\.md", config))


# --- Errors -------------------------------------------------------------------------------------


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, without backticks."""
    lines = iter(page.read_text("utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows[1:]


ERRORS = ROOT / "docs" / "errors.md"


def test_the_table_of_errors_is_that_of_the_code() -> None:
    raised = {
        kind.__name__: kind
        for kind in vars(errors).values()
        if isinstance(kind, type)
        and issubclass(kind, InviteError)
        and kind not in (InviteError, errors.UntrustedReplyError)  # nobody raises these
    }
    rows = {row[0]: row for row in table(ERRORS, "error")}

    assert set(raised) == set(rows)
    for kind, row in zip(map(raised.get, rows), rows.values(), strict=True):
        assert kind is not None
        builtin = {base.__name__ for base in kind.__bases__ if not issubclass(base, InviteError)}
        assert builtin == {row[1]} - {""}, row
        assert kind.default_delivery == row[3].partition(";")[0], row  # what follows are exceptions


def test_the_table_of_problems_is_that_of_the_code() -> None:
    rows = table(ERRORS, "`CountersignatureProblem`")

    assert [problem.name for problem in CountersignatureProblem] == [row[0] for row in rows]


def test_the_page_of_errors_names_every_stage_and_delivery() -> None:
    text = ERRORS.read_text("utf-8")

    assert [] == [stage for stage in Stage if str(stage) not in text]
    assert [] == [delivery for delivery in Delivery if str(delivery) not in text]
