"""A rank that is held up by 20 ms before it aggregates: the others' arrival skew, and what of it lands in the transfer."""

import statistics
import sys
import tempfile
from pathlib import Path

from harness.report.frame import Run, load_run
from harness.report.times import SKEW, TRANSFER, Times, times_of
from harness.schema.record import HOST
from tests.running import ROOT, launch

DELAY_MS = 20.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = launch(
            *(
                "--config-dir",
                str(ROOT / "docs" / "example"),
                "sync=[none,straggler]",
                f"sync.straggler.milliseconds={DELAY_MS}",
            ),
            *("workload=[mlp_digits]", "reduction=[mean]", "iterations=200", "order=interleaved", "rounds=10"),
            f"results_dir={folder}",
        )
        if done.returncode:
            sys.exit(done.stderr)
        run = load_run(Path(folder) / "default" / "latest")
        without, held_up = (_times(run, policy) for policy in ("none", "straggler"))
    skew, before = _median(held_up, SKEW), _median(without, SKEW)
    grown = _median(held_up, TRANSFER) - _median(without, TRANSFER)
    print(f"rank 1 sleeps {DELAY_MS:.0f} ms before the all-reduce, 200 iterations in turn with as many in which it does not:")
    print(f"  rank 0's skew                {skew:.2f} ms; without {before:.2f} ms")
    print(f"  transfer's median            {grown:+.2f} ms")


def _times(run: Run, policy: str) -> Times:
    return times_of(run.raw_samples(run.cases.case_id[run.cases.sync == policy].item()))


def _median(times: Times, phase: str) -> float:
    """Of rank 0, in ms."""
    return 1e3 * statistics.median(times.phases[HOST, phase][:, 0])


if __name__ == "__main__":
    main()
