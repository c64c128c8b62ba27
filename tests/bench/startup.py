"""From the command to the first warm-up step of `mlp_digits`, against a bare torchrun script that joins a gloo world."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

from harness.report.frame import load_run
from harness.schema.run_dir import RunDir
from tests.running import ENVIRONMENT, ROOT, TORCHRUN, launch

STARTS = 5
BARE = """
import sys, time
from pathlib import Path
import torch, torch.distributed as dist
dist.init_process_group("gloo")
(Path(sys.argv[1]) / str(dist.get_rank())).write_text(repr(time.monotonic()))
dist.destroy_process_group()
"""


def main(starts: int = STARTS) -> None:
    pairs = []
    for turn in range(starts):
        calls = [_bare, _ours] if turn % 2 == 0 else [_ours, _bare]
        told = {call: call() for call in calls}
        pairs.append((told[_ours], told[_bare]["joined"]))
    medians = {phase: statistics.median(reached[phase] for reached, _ in pairs) for phase in pairs[0][0]}
    bare = statistics.median(joined for _, joined in pairs)
    ratios = [reached["pre-flight"] / joined for reached, joined in pairs]
    print(f"start-up of mlp_digits, 2 ranks, {starts} alternating starts, medians:")
    ours = medians["pre-flight"]
    print(f"  command to pre-flight        {ours:.2f} s, which is {ours / bare:.2f} times the bare script")
    print(f"  of the pairs                 {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    print(f"  a bare script, gloo joined   {bare:.2f} s ({min(j for _, j in pairs):.2f} to {max(j for _, j in pairs):.2f})")
    print(f"  pre-flight to the first step {medians['forward'] - ours:.2f} s; references, later, {medians['references']:.2f} s")
    reached = ", ".join(f"{phase} {medians[phase]:.2f}" for phase in ("start", "import", "join", "assemble"))
    print(f"  a rank is there (start), and reaches: {reached} s")


def _bare() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        started = monotonic()
        command = [*TORCHRUN, "--nproc-per-node=2", str(script), folder]
        subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
        return {"joined": max(float((Path(folder) / str(rank)).read_text()) for rank in range(2)) - started}


def _ours() -> dict[str, float]:
    """When the last rank reached each phase."""
    with tempfile.TemporaryDirectory() as folder:
        started = monotonic()
        done = launch("workload=[mlp_digits]", "reduction=[mean]", f"results_dir={folder}")
        if done.returncode:
            sys.exit(done.stderr)
        latest = Path(folder) / "default" / "latest"
        ranks = [status.reached for status in RunDir(latest).ranks.statuses()]
        reached = {phase: max(own[phase] for own in ranks) - started for phase in ranks[0]}
        return {**reached, "references": float(load_run(latest).cases.reference_s.sum())}


if __name__ == "__main__":
    main()
