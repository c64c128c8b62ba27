"""How often real launches of equal code are called different, and a planted slow-down is found."""

import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from time import perf_counter

import numpy as np

from harness.report.sides import TIME, Key, load_side
from harness.report.statistics import Floats
from harness.report.verdict import LESS, MORE, Ratio, judge
from launch.ab import configure_sides, run_sides
from tests.running import ROOT, launch

POOL, PAIRS, DRAWN, COMPARISONS = 20, 10, 5, 20
"""Launches of the pool; launches a side with the slow-down planted; of them drawn a side; comparisons."""
PLANTED = "planted"
MATRIX = ("workload=[mlp_digits]", "reduction=[mean]", "aggregation=[flat,planted,ddp,local]", "torchrun.nproc_per_node=2")
VISITS = ("order=interleaved", "rounds=5", "iterations=50", "warm_up=2")
"""A launch's median is of iterations from all over the launch."""
OWN = str(ROOT / "tests" / "bench" / "planted")
Times = dict[Key, Floats]
"""Seconds of each launch."""


def main() -> None:
    start = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pool = _pool(folder)
        planted = next(key for key in pool if _name(key) == PLANTED)
        equal = {key: _drawn_from(times) for key, times in pool.items()}
        _tell_pool(pool, equal)
        half = _half(equal[planted])
        base, new = _sides(folder, 2e3 * half * float(np.median(pool[planted])))
    _tell_planted(2 * half, {key: _drawn_in_pairs(base[key], new[key]) for key in pool})
    print(f"  {POOL + 2 * PAIRS} launches and {2 * COMPARISONS} comparisons: {perf_counter() - start:.0f} s")


def _pool(folder: str) -> Times:
    overrides = (*MATRIX, *VISITS, f"launches={POOL}", "+env.PLANTED_MS=0", f"results_dir={folder}", "name=pool")
    done = launch("--config-dir", OWN, *overrides, timeout=900)
    if done.returncode:
        sys.exit(done.stderr)
    return _times(Path(folder) / "pool" / "latest")


def _sides(folder: str, milliseconds: float) -> tuple[Times, Times]:
    """Launches in turn, without the slow-down and with it."""
    common = [*MATRIX, *VISITS, f"launches={PAIRS}", f"results_dir={folder}"]
    configs = configure_sides(common, ["+env.PLANTED_MS=0"], [f"+env.PLANTED_MS={milliseconds:.4f}"], OWN)
    with contextlib.redirect_stdout(io.StringIO()):
        verdict, run_dirs = run_sides(configs)
    if verdict.status:
        sys.exit("\n".join(verdict.lines))
    base, new = (_times(run_dir.path) for run_dir in run_dirs)
    return base, new


def _times(path: Path) -> Times:
    side = load_side([path])
    return {key: side.launches(key)[TIME] for key in side.measured}


def _drawn_from(times: Floats) -> list[Ratio]:
    """Comparisons of launches of one pool, which fall to the sides in turn."""
    random, found = Random(0), []
    for _ in range(COMPARISONS):
        drawn = times[sorted(random.sample(range(len(times)), 2 * DRAWN))]
        found.append(judge(drawn[::2], drawn[1::2]))
    return found


def _drawn_in_pairs(base: Floats, new: Floats) -> list[Ratio]:
    """Comparisons of launches that were made in turn."""
    random, found = Random(0), []
    for _ in range(COMPARISONS):
        drawn = sorted(random.sample(range(len(base)), DRAWN))
        found.append(judge(base[drawn], new[drawn]))
    return found


def _tell_pool(pool: Times, equal: dict[Key, list[Ratio]]) -> None:
    print(f"A/A: {COMPARISONS} comparisons of {DRAWN} launches a side in turn, drawn from a pool of {POOL}; step, ms:")
    for key, times in pool.items():
        found = equal[key]
        shows = float(np.median([one.detectable for one in found]))
        print(f"  {_name(key):<8}  {' '.join(f'{seconds * 1e3:.2f}' for seconds in times)}")
        print(f"  {'':<8}  A/A interval +-{_half(found):.0%}, shows from {shows:+.0%}; called different: {_different(found)}")
    told = [one for found in equal.values() for one in found]
    print(f"  equal cases called different: {_different(told)} of {len(told)} ({_different(told) / len(told):.1%})")


def _tell_planted(share: float, found: dict[Key, list[Ratio]]) -> None:
    print(f"a slow-down of {share:.0%}, twice that interval, planted in one case; {PAIRS} launches a side in turn:")
    for key, ratios in found.items():
        slower = sum(one.verdict == MORE for one in ratios)
        print(f"  {_name(key):<8}  called slower {slower}, faster {_different(ratios) - slower} of {len(ratios)}")
    others = [one for key, ratios in found.items() if _name(key) != PLANTED for one in ratios]
    share = _different(others) / len(others)
    print(
        f"  cases without it called different: {_different(others)} of {len(others)} ({_different(others) / len(others):.1%})"
    )


def _half(found: Sequence[Ratio]) -> float:
    """Half the width of the interval of equal sides: the median over the comparisons."""
    return float(np.median([(one.high - one.low) / 2 for one in found]))


def _different(found: Sequence[Ratio]) -> int:
    return sum(one.verdict in (MORE, LESS) for one in found)


def _name(key: Key) -> str:
    return dict(key)["aggregation"]


if __name__ == "__main__":
    main()
