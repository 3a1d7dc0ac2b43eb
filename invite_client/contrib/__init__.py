"""Adapters to the world: logs, metrics and traces of what an `Observer` is told.

    from invite_client.contrib import observers
    from invite_client.contrib.logs import LogObserver
    from invite_client.contrib.prometheus import PrometheusObserver

    observer = observers(LogObserver(), PrometheusObserver(registry))
    async with InviteClient("inviter.example", key, observer=observer) as client: ...

Each adapter is a module that imports what it adapts to: the extras `metrics` and `tracing` bring it.
"""

from __future__ import annotations

import logging

from invite_client.interfaces import Observer
from invite_client.observations import Observation

__all__ = ["observers"]

_log = logging.getLogger(__name__)


def observers(*several: Observer) -> Observer:
    """Return one observer that tells several, in this order. What one raises is lost on no other."""

    def tell(event: Observation) -> None:
        for observer in several:
            try:
                observer(event)
            except Exception:  # noqa: BLE001  # whatever a host has put there
                _log.exception("an observer failed")

    return tell
