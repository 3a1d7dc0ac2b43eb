"""RFC 2782: in which order to try the targets of SRV records, given a source of chance."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby

__all__ = ["SrvRecord", "in_order"]


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """One SRV record."""

    priority: int
    """Lower ones are tried first."""
    weight: int
    """The share of first tries among records of equal priority."""
    port: int
    """Where to connect on the target."""
    target: str
    """A host name without trailing dot; ``.`` alone says that the service is not offered."""


def in_order(records: Iterable[SrvRecord], chance: Callable[[int], int]) -> list[SrvRecord]:
    """Return the records in the order to try them. `chance(n)` is a uniform draw from 0 to n."""
    ordered: list[SrvRecord] = []
    by_priority = sorted(records, key=lambda record: (record.priority, record.weight))
    for _, group in groupby(by_priority, key=lambda record: record.priority):
        # "Arrange all SRV RRs (that have not been ordered yet) in any order, except that all those
        # with weight 0 are placed at the beginning of the list."
        waiting = list(group)
        while waiting:
            # "Select the RR whose running sum value is the first in the selected order which is
            # greater than or equal to the random number selected."
            sums = list(accumulate(record.weight for record in waiting))
            ordered.append(waiting.pop(bisect_left(sums, chance(sums[-1]))))
    return ordered
