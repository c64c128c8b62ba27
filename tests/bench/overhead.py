"""The share of the default run's wall time, imports apart, that is spent outside samples, references and comparisons."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from harness.report.frame import load_run
from tests.running import ROOT, launch

IMPORTS = ("launch.job", "launch.agent", "harness.rank.session", "harness.report.render")
"""What is imported one after the other: by the launcher, by torchrun, by the ranks, and by the launcher for the report."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        done = launch(f"results_dir={folder}", timeout=600)
        wall = perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr)
        run = load_run(Path(folder) / "default" / "latest")
        samples = run.samples
    samples = samples[(samples.phase == "step") & (samples["clock"] == "host")]
    sampled = samples.groupby(["case_id", "iteration"], observed=True).seconds.max().sum()
    references, comparisons, cases = (float(run.cases[column].sum()) for column in ("reference_s", "compare_s", "wall_s"))
    inside = sampled + references + comparisons
    print(f"the default run, {len(run.cases)} cases, {wall:.1f} s from command to report:")
    print(f"  samples, warm-ups included   {sampled:.1f} s, references {references:.2f} s, comparisons {comparisons:.2f} s")
    print(f"  cases                        {cases:.1f} s, of which {(cases - inside) / cases:.1%} is none of these")
    imports = sum(map(_import_s, IMPORTS))
    print(f"  imports                      {imports:.1f} s; the rest (start, assembly, report): {wall - cases - imports:.1f} s")
    print(f"  outside, imports apart       {(wall - imports - inside) / (wall - imports):.1%} of the wall time")


def _import_s(module: str) -> float:
    start = perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
    return perf_counter() - start


if __name__ == "__main__":
    main()
