"""`report show` on a synthetic run of 1,024 ranks, 50 cases, 50 iterations and six phases: 15 million samples."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from harness.schema.case import Case
from harness.schema.run_dir import RunDir
from tests.running import ENVIRONMENT, ROOT
from tests.synthetic import make_run

RANKS, CASES, ITERATIONS = 1024, 50, 50
COLUMNS = (*(("host", phase) for phase in ("forward", "backward", "aggregate", "unscale", "step")), ("arrival", "aggregate"))


def make_large(folder: Path, *, ranks: int = RANKS, cases: int = CASES, iterations: int = ITERATIONS) -> RunDir:
    """A run of that size, its cases told apart by the bytes of a bucket."""

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        random = np.random.default_rng([*case.case_id.encode()])
        drawn = random.gamma(4.0, 1e-3, (len(COLUMNS), iterations, ranks))
        return dict(zip(COLUMNS, drawn, strict=True))

    sizes = ",".join(str(1024 * (place + 1)) for place in range(cases))
    overrides = ["workload=[mlp_digits]", "reduction=[mean]", "aggregation=[bucketed]", f"aggregation.bucketed.bytes=[{sizes}]"]
    return make_run(folder, seconds, *overrides, f"iterations={iterations}", f"global_batch_size={ranks}", ranks=ranks)


def show(run_dir: RunDir) -> tuple[float, float]:
    """Seconds and GB (peak resident set) of `report show`, in a process of its own."""
    command = (sys.executable, "-m", "harness.report", "show", str(run_dir.path))
    start = perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # its own peak, and no earlier child's
    wall = perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    return wall, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = make_large(Path(folder))
        wall, peak = show(run_dir)
    samples = RANKS * CASES * ITERATIONS * len(COLUMNS)
    print(f"report show of {RANKS} ranks, {CASES} cases, {samples / 1e6:.1f} million samples: {wall:.1f} s, {peak:.2f} GB")


if __name__ == "__main__":
    main()
