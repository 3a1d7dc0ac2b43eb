"""The site, as a browser finds it: every link leads somewhere, and it fits on a phone."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = 390
"""The width of most phones, in the pixels of CSS."""

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page of the site links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.headings = 0
        self.title = ""
        self._in_title = False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.headings += tag == "h1"
        self._in_title = tag == "title"
        match tag:
            case "a" if "href" in given:
                self.links.append(given["href"])
            case "link" if given.get("rel") not in ("canonical", "search"):
                self.loads.append(given.get("href", ""))
            case "script" | "img" if given.get("src"):
                self.loads.append(given["src"])

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", directory]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert 0 == done.returncode, done.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its path, as a browser asks for it; not the one for what is not there."""
    found = {}
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":
            address = path.relative_to(site).as_posix().removesuffix("index.html")
            found[f"/{address}"] = Page(path)
    return found


def test_every_page_of_the_documentation_is_there(pages: dict[str, Page]) -> None:
    sources = (path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
    addresses = {f"/{path.with_suffix('').as_posix()}/" for path in sources}

    assert {re.sub("(^|/)index/$", "/", address) for address in addresses} == set(pages)


def test_every_link_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    broken = []
    for address, page in pages.items():
        for link in [*page.links, *page.loads]:
            there = urlsplit(urljoin(address, link))
            if there.scheme or there.netloc:
                continue
            target, anchor = unquote(there.path), unquote(there.fragment)
            known = pages.get(target)
            if known is None and not (site / target.lstrip("/")).is_file():
                broken.append((address, link, "no such page"))
            elif known is not None and anchor not in known.anchors:
                broken.append((address, link, "no such anchor"))

    assert [] == broken


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, Page]) -> None:
    loads = {load for page in pages.values() for load in page.loads}

    assert set() == {load for load in loads if urlsplit(load).netloc}


def test_every_page_has_a_title_of_its_own_and_one_heading(pages: dict[str, Page]) -> None:
    titles = [page.title.strip() for page in pages.values()]

    assert sorted(set(titles)) == sorted(titles)
    assert {1} == {page.headings for page in pages.values()}


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_every_page_fits_on_a_phone(
    site: Path, pages: dict[str, Page], served: str, tmp_path: Path
) -> None:
    """Tables and code scroll by themselves: what makes the page scroll sideways hides its text."""
    frames = "".join(f'<iframe width="{PHONE}" src="{address}"></iframe>' for address in pages)
    script = (
        "<script>onload = () => { document.title = JSON.stringify(Object.fromEntries("
        "[...document.querySelectorAll('iframe')].map(frame => [frame.getAttribute('src'),"
        "frame.contentDocument.documentElement.scrollWidth]))) }</script>"
    )
    (site / "probe.html").write_text(f"<title></title>{frames}{script}")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    dom = subprocess.run(
        [BROWSER, *flags, *quiet, "--hide-scrollbars", "--dump-dom", f"{served}/probe.html"],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    ).stdout
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    widths = json.loads(html.unescape(found[1]))

    assert dict.fromkeys(pages, PHONE) == widths
