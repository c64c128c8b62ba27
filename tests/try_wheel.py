"""Install a wheel in a fresh environment, and run it there, away from the sources: `python tests/try_wheel.py WHEEL`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
RANKS = "torchrun.nproc_per_node=2"
FACADE = """
import sys
import harness, reducebench
assert not {"torch", "pandas"} & set(sys.modules), "the facade is lazy"
assert reducebench.__all__ == harness.__all__
assert all(getattr(reducebench, name) is getattr(harness, name) for name in harness.__all__)
run = reducebench.load_run("results/smoke/latest")
assert set(run.cases.status) == {"ok"}, run.cases.status
"""


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", str(python.parent.parent), cwd=folder)
        environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
        install = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*install, "torch==2.13.0", cwd=folder, env=environment)
        run(*install, str(wheel.absolute()), cwd=folder, env=environment)
        run(str(python.parent / "reducebench"), "experiment=smoke", cwd=folder)
        run(str(python.parent / "reducebench-report"), "show", "results/smoke/latest", cwd=folder)
        run(str(python), "-c", FACADE, cwd=folder)
        run(str(python), "-m", "reducebench", "--dry-run", "experiment=aggregation", "launch=slurm", RANKS, cwd=folder)
    print(f"{wheel.name}: installed and run in a fresh environment")


def run(*command: str, cwd: str, env: dict[str, str] | None = None) -> None:
    """The output is shown when the command fails only."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
