"""A file that is written is there whole, or as it was before; what is read is waited for."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from invite_client.cli.bulk_input import Lines
from invite_client.cli.files import read_bytes, write_whole
from tests.cli.calling import WITHOUT_ROOTS_EYES, full_disk

WRITE = """
import sys
from invite_client.cli.files import write_whole
write_whole(sys.argv[1], sys.stdin.buffer.read())
"""
OLD, NEW = b"<!doctype html>old", b"<!doctype html>" + 100_000 * b"new"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that is there."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "report.html"
    path.write_bytes(OLD)
    return path


def names(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def test_what_was_there_outlives_a_full_disk_and_nothing_is_left_beside_it(path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_whole(str(path), NEW)

    assert OLD == path.read_bytes()
    assert ["report.html"] == names(path)


def test_a_full_disk_leaves_no_part_where_nothing_was(path: Path) -> None:
    path.unlink()
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_whole(str(path), NEW)

    assert [] == names(path)


def test_what_was_there_outlives_a_kill_half_way(path: Path) -> None:
    # A signal that ends the process stands in for any kill: it comes in the middle of a write.
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
{WRITE}
"""
    killed = subprocess.run([sys.executable, "-c", program, str(path)], input=NEW, check=False)

    assert -signal.SIGXFSZ == killed.returncode
    assert OLD == path.read_bytes()


def test_whoever_reads_meanwhile_reads_on_in_what_was_there(path: Path) -> None:
    with path.open("rb") as reading:
        write_whole(str(path), NEW)

        assert OLD == reading.read()
    assert NEW == path.read_bytes()
    assert ["report.html"] == names(path)


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_one(path: Path, dangling: bool) -> None:
    link = path.parent.parent / "link.html"
    link.symlink_to("folder/report.html")
    if dangling:
        path.unlink()
    write_whole(str(link), NEW)

    assert link.is_symlink()
    assert NEW == path.read_bytes()


def test_who_may_read_a_file_may_read_the_next_and_nobody_else(path: Path) -> None:
    path.chmod(0o640)
    before = path.stat()
    write_whole(str(path), NEW)
    after = path.stat()

    assert 0o640 == stat.S_IMODE(after.st_mode)
    assert (before.st_uid, before.st_gid) == (after.st_uid, after.st_gid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_whose_file_it_is_stays(path: Path) -> None:
    os.chown(path, 65534, 65534)
    write_whole(str(path), NEW)

    assert (65534, 65534) == (path.stat().st_uid, path.stat().st_gid)
    assert NEW == path.read_bytes()


def test_a_new_file_is_as_every_new_file_is(path: Path) -> None:
    path.unlink()
    before = os.umask(0o027)
    try:
        write_whole(str(path), NEW)
    finally:
        os.umask(before)

    assert 0o640 == stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(
    bool(WITHOUT_ROOTS_EYES) and not shutil.which("setpriv"), reason="root may write everywhere"
)
def test_a_file_that_may_be_written_is_written_where_nothing_new_may_be(path: Path) -> None:
    path.parent.chmod(0o555)
    try:
        subprocess.run(
            [*WITHOUT_ROOTS_EYES, sys.executable, "-c", WRITE, str(path)], input=NEW, check=True
        )
    finally:
        path.parent.chmod(0o755)

    assert NEW == path.read_bytes()
    assert ["report.html"] == names(path)


def test_a_pipe_is_written_into(path: Path) -> None:
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    writing = threading.Thread(target=write_whole, args=(str(pipe), NEW))
    writing.start()
    try:
        read = pipe.read_bytes()
    finally:
        writing.join()

    assert NEW == read
    assert pipe.is_fifo()


def test_a_file_that_is_standard_output_is_written_into(path: Path) -> None:
    program = [sys.executable, "-c", f"{WRITE}\nprint('<!-- more -->')", "/dev/stdout"]
    with path.open("ab") as stdout:
        stdout.truncate(0)
        subprocess.run(program, input=NEW, stdout=stdout, check=True)

    assert NEW + b"<!-- more -->\n" == path.read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="another system has no such state")
@pytest.mark.parametrize("read", [read_bytes, Lines])
def test_what_is_on_standard_input_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object]
) -> None:
    """Whoever has started us may use it without waiting, and so would we."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.write(writer, b"{}")
    os.close(writer)
    with open(reader, encoding="utf-8") as stdin:  # a pipe has no path
        monkeypatch.setattr(sys, "stdin", stdin)
        read("-")

        assert os.get_blocking(reader)
