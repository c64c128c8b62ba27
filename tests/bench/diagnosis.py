"""How often the diagnosis is right: random planted faults, and clean cases, in worlds of 2 to 4 ranks; and what it costs.

`python -m tests.bench.diagnosis 20` makes that many cases of each kind a world.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

from harness.report.frame import load_run
from harness.schema.record import VERDICTS
from tests.running import launch, torchrun

RANKS, CASES, FIRST = (2, 3, 4), 110, 100
"""Worlds; cases of each kind a world; the seed of the first."""
Rows = list[dict[str, Any]]


def main(cases: int = CASES) -> None:
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        faulty, clean = (_rows(Path(folder), kind, cases) for kind in ("fault", "clean"))
        taken = _told(Path(folder) / "memory.json", 2, "diagnosis_memory")
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


def _rows(folder: Path, kind: str, cases: int) -> Rows:
    return [row for ranks in RANKS for row in _told(folder / "rows.json", ranks, "diagnosis", str(FIRST), str(cases), kind)]


def _told(out: Path, ranks: int, module: str, *arguments: str) -> Any:
    done = torchrun(ranks, "-m", f"tests.worlds.{module}", str(out), *arguments, timeout=3600)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(out.read_text())


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
