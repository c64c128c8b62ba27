"""`make bench`: the cost of the harness itself, as ratios of alternating rounds, each beside the ratio of equal calls (A/A).

`make bench ARGS="step skew"` runs two parts, each in a process of its own: `python -m tests.bench.step`, then `.skew`.
"""

import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from tests.running import ROOT

PARTS = (
    *("comparison", "step", "busbw", "skew", "startup", "overhead", "scale", "diagnosis", "audit", "verdicts", "same"),
    "cost_line",
)
"""Parts that run when none is named, in this order."""
ON_REQUEST = ("scaling",)
"""Parts that run only when they are named."""


def main(arguments: list[str]) -> int:
    """Run the named parts up to the first one that fails, and return its status."""
    names = _names(arguments)
    statuses = (subprocess.call([sys.executable, "-m", f"tests.bench.{name}"], cwd=ROOT) for name in names)
    return next((status for status in statuses if status), 0)


def _names(arguments: list[str]) -> Sequence[str]:
    accepted = ", ".join(PARTS + ON_REQUEST)
    parser = ArgumentParser(prog="python -m tests.bench", description="Measure the cost of the harness itself.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{accepted}; default: all but {', '.join(ON_REQUEST)}")
    names: list[str] = parser.parse_args(arguments).names
    for name in names:
        if name not in PARTS + ON_REQUEST:
            parser.exit(2, f"{parser.prog}: {name}: unknown part; accepted: {accepted}\n")
    return names or PARTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
