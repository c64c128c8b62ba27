"""How often the diagnosis is right: random planted faults, and clean cases, in worlds of 2 to 4 ranks; and what it costs.

`python -m tests.bench.diagnosis 20` makes that many cases of each kind a world.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

from harness.report.frame import load_run
from harness.schema.record import VERDICTS
from tests.running import launch
from tests.worlds.pool import Pool

RANKS, CASES, FIRST = (2, 3, 4), 110, 100
"""Worlds; cases of each kind a world; the seed of the first."""
LIMIT_S = 3600.0
"""Time limit of all cases of one kind in one world."""
Rows = list[dict[str, Any]]


def main(cases: int = CASES) -> None:
    start = perf_counter()
    with Pool() as worlds:
        faulty, clean = (_rows(worlds, kind, cases) for kind in ("fault", "clean"))
    with Pool() as worlds:
        taken = worlds.run(2, "tests.worlds.diagnosis_memory:peaks")
    with tempfile.TemporaryDirectory() as folder:
        cost = _cost(Path(folder))
    print(f"diagnosis: {len(faulty)} planted faults, {len(clean)} clean cases, {perf_counter() - start:.0f} s")
    print("  " + "\n  ".join(confusion(faulty + clean)))
    print(f"  right: {_share(faulty)} of the faults, {_share(clean)} of the clean cases")
    print(f"  cnn_digits: a diagnosis takes {cost[0]:.2f} of its case (at most {cost[1]:.2f}), the float64 rerun {cost[2]:.2f}")
    print(
        f"  memory above what was there, in gradients: the case {taken['case']:.1f}, its diagnosis {taken['diagnosis']:.1f}, "
        f"what that computes in float64 {taken['float64']:.1f}"
    )


def confusion(rows: Rows) -> list[str]:
    """A line a fault: how many were right, and which verdicts they got."""
    seen = [verdict for verdict in VERDICTS if any(row["verdict"] == verdict for row in rows)]
    lines = ["| planted | right | " + " | ".join(seen) + " |", "| --- | --- | " + " | ".join("---" for _ in seen) + " |"]
    for fault in sorted({row["fault"] for row in rows}):
        own = [row for row in rows if row["fault"] == fault]
        counts = Counter(row["verdict"] for row in own)
        cells = [str(counts[verdict] or "") for verdict in seen]
        lines.append(f"| {fault} | {_share(own)} | " + " | ".join(cells) + " |")
    return lines


def _share(rows: Rows) -> str:
    right = sum(row["right"] for row in rows)
    return f"{right} of {len(rows)}"


def _rows(worlds: Pool, kind: str, cases: int) -> Rows:
    seeds = list(range(FIRST, FIRST + cases))
    found = [worlds.run(ranks, "tests.worlds.diagnosis:rows", seeds, kind, timeout_s=LIMIT_S) for ranks in RANKS]
    return [row for rows in found for row in rows]


def _cost(folder: Path) -> tuple[float, float, float]:
    """On cnn_digits: median and maximum of a diagnosis over its case, and the median of the float64 rerun."""
    asked = ("workload=[cnn_digits]", "diagnose=true", "fault=[none,dropped_sample]", "torchrun.nproc_per_node=2")
    done = launch(*asked, f"results_dir={folder}", timeout=900)
    if done.returncode:
        sys.exit(done.stderr)
    run = load_run(folder / "default" / "latest")
    told = run.diagnoses.assign(case_id=run.diagnoses.case_id.astype(str)).set_index("case_id")
    wall = run.cases.assign(case_id=run.cases.case_id.astype(str)).set_index("case_id").wall_s.reindex(told.index)
    own = wall - told.seconds - told.exact_seconds
    ratios = told.seconds / own
    return float(ratios.median()), float(ratios.max()), float((told.exact_seconds / own).median())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
