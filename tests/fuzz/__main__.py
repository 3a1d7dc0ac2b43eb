"""Feed mutated inputs to every reader of foreign bytes: ``python -m tests.fuzz --inputs 1000000``."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from random import Random

from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS, Target


def fuzz(target: Target, inputs: int, seed: int) -> tuple[int, bytes | None]:
    """Return how many inputs were accepted, and the input that found a bug, if one did."""
    chance = Random(f"{seed} {target.name}")
    accepted = 0
    for _ in range(inputs):
        data = mutate(target.corpus, chance)
        try:
            accepted += target.run(data)
        except Exception:  # whatever it is, it should not have left the parser
            traceback.print_exc()
            return accepted, data
    return accepted, None


def main(arguments: Sequence[str] | None = None, targets: Sequence[Target] = TARGETS) -> int:
    """Share the inputs among the targets. The exit code is 1 if there is a bug."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="in all; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same inputs")
    parser.add_argument("--target", help="only those with this in their name")
    options = parser.parse_args(arguments)
    chosen = [target for target in targets if (options.target or "") in target.name]
    bugs = 0
    for target in chosen:
        started = time.monotonic()
        share = -(-options.inputs // len(chosen))
        accepted, culprit = fuzz(target, share, options.seed)
        seconds = time.monotonic() - started
        print(f"{target.name}: {share} inputs, {accepted} accepted, {seconds:.1f} s", flush=True)
        if culprit is not None:
            bugs += 1
            print(f"  a bug is found by {culprit!r}", flush=True)
    return min(bugs, 1)


if __name__ == "__main__":
    sys.exit(main())
