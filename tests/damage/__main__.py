"""`python -m tests.damage RUN`: trials on copies of a run, with a line for each that failed."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.damage.trial import try_one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=500)
    parser.add_argument("--keep", action="store_true", help="keep the folder of each trial that failed")
    arguments = parser.parse_args()
    failed = 0
    for number in range(arguments.first, arguments.last):
        folder = Path(tempfile.mkdtemp(prefix="damage-"))
        began = time.monotonic()
        trial = try_one(arguments.run.resolve(), folder, arguments.seed, number)
        took = time.monotonic() - began
        if number % 50 == 0:
            print(f"trial {number}", flush=True)
        if took > 10:
            print(f"{took:.0f} s: {trial.name}", flush=True)
        if trial.faults:
            failed += 1
            print(f"FAILED {trial.name}", *trial.faults, sep="\n", flush=True)
        if trial.faults and arguments.keep:
            print(folder)
        else:
            shutil.rmtree(folder)
    print(f"{failed} of {arguments.last - arguments.first} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
