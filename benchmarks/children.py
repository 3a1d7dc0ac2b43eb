"""Processes that are told what to do by lines of JSON, and answer with lines of JSON."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

__all__ = ["Child", "ChildFailedError", "reply"]


class ChildFailedError(RuntimeError):
    """A process did not do what it was told."""


def reply(**values: Any) -> None:
    """In a child: answer."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Child:
    """One process, from when it is ready until the block ends."""

    def __init__(
        self, module: str, *arguments: str, patience: float = 60, quiet: bool = False
    ) -> None:
        """Start ``python -m module arguments`` and wait for its first line."""
        self.name = " ".join([module, *arguments])
        # A proxy of the environment would come between the two ends of a loopback connection.
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self._process = subprocess.Popen(  # noqa: S603  # our own module, our own arguments
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the harness, which ends its children
        )
        self._unread = b""
        try:
            self._read(patience)
        except BaseException:
            self.close()
            raise

    def ask(self, patience: float = 600, **command: Any) -> dict[str, Any]:
        """Give one command, wait at most `patience` seconds, return the answer."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        answer = self._read(patience)
        if "failed" in answer:
            raise ChildFailedError(f"{self.name}, told {command}: {answer['failed']}")
        return answer

    def _read(self, patience: float) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        deadline = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ChildFailedError(f"{self.name}: no answer within {patience:g} s")
                data = os.read(self._process.stdout.fileno(), 65_536)
                if not data:
                    raise ChildFailedError(f"{self.name} ended with {self._process.wait()}")
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process: by the end of its input, or else by force."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
