"""``python -m benchmarks``: check, measure, report."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.children import ChildFailedError
from benchmarks.parts import Bench, Size, loops_here
from benchmarks.report import Report
from benchmarks.scenario import LITERALS, make

_FULL = Size(
    rounds=7,
    turns=6,
    hot=300,
    cold=7,
    bulk_rounds=14,
    bulk_names=200,
    linear=(1_000, 10_000, 100_000),
    imports=20,
)
# Enough to see that all of it works, and the large differences.
_QUICK = Size(
    rounds=3,
    turns=2,
    hot=300,
    cold=3,
    bulk_rounds=3,
    bulk_names=40,
    linear=(1_000, 4_000),
    imports=5,
)
_HOT_INVITES = 300
"""Different invites among the hot ones: more than are under way at once."""

_PARTS = ("hot", "cold", "bulk", "linear", "memory", "imports")


def main() -> int:
    """Run the benchmarks that are asked for; 1 if a forged answer was taken or a process failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(_PARTS)}; all")
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, of less; a minute or two"
    )
    parser.add_argument("--rounds", type=int, help="rounds that count (alternating contenders)")
    parser.add_argument(
        "--round-trip", type=float, default=0.05, help="seconds, for the cold cases (0.05)"
    )
    parser.add_argument("--asyncio-only", action="store_true", help="leave uvloop out")
    parser.add_argument("--json", type=Path, help="write everything that was measured here")
    parser.add_argument("--plot", type=Path, help="write a plot (SVG) here")
    options = parser.parse_args()
    unknown = set(options.parts) - set(_PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(_PARTS)}")

    size = _QUICK if options.quick else _FULL
    if options.rounds:
        size = Size(
            rounds=options.rounds,
            turns=size.turns,
            hot=size.hot,
            cold=min(options.rounds, len(LITERALS)),
            bulk_rounds=2 * options.rounds,
            bulk_names=size.bulk_names,
            linear=size.linear,
            imports=size.imports,
        )
    loops = ["asyncio"] if options.asyncio_only else loops_here()
    report = Report(
        {"quick": options.quick, "rounds": size.rounds, "round_trip": options.round_trip}
    )
    try:
        with tempfile.TemporaryDirectory(prefix="invite_client-bench-") as directory:
            scenario = make(
                Path(directory),
                hot=_HOT_INVITES,
                cold=size.cold,
                bulk_rounds=size.bulk_rounds + 1,
                bulk_names=size.bulk_names,
            )
            with ExitStack() as stack:
                bench = Bench(scenario, size, report, options.round_trip, stack)
                _say("check: forged answers")
                bench.check(loops)
                work: dict[str, Callable[[], None]] = {
                    "hot": lambda: bench.hot(loops),
                    "cold": bench.cold,
                    "bulk": lambda: bench.bulk(loops),
                    "linear": bench.linear,
                    "memory": bench.memory,
                    "imports": bench.imports,
                }
                for part in options.parts or _PARTS:
                    _say(part)
                    work[part]()
                report.notes.append(
                    f"the servers were busy for at most {bench.busiest:.0%} of any run"
                )
    except ChildFailedError as error:
        _say(f"stopped: {error}")
        return 1
    except KeyboardInterrupt:
        print(report.table())
        _say("interrupted: what was measured until then is above")
        return 130
    finally:
        if options.json:
            report.save(options.json)
        if options.plot:
            report.plot(options.plot)
    print(report.table())
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
