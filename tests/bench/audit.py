"""Verdicts of `audit` below float32: right steps in bfloat16, and steps with a small mistake, on two ranks.

`python -m tests.bench.audit 200` audits that many right steps, of five kinds, random widths, and random numbers of samples.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from tests.worlds.pool import Pool

RIGHT = 200
OF_ONE, PARAMETERS = (0.9, 0.0), 20
"""Factors on the gradient of one parameter; models, each with another parameter."""
FACTORS, OTHERS, SEEDS = (1.01, 1.02, 1.05, 1.1, 1.3), (31, 28, 24, 16), (0, 1, 2)
"""Factors on the loss; samples of rank 1, where rank 0 has 32 and the mean of the two means is taken; models of each kind."""
KINDS = ("autocast", "passes", "hook", "fsdp_compute", "fsdp_reduce")
MODELS = ("mlp", "transformer")
LIMIT_S = 3600.0


def main(right: int = RIGHT) -> None:
    start = perf_counter()
    with Pool() as worlds:
        sound = worlds.run(2, "tests.worlds.audits:in_bfloat16", list(_right(right)), timeout_s=LIMIT_S)
        wrong = {name: worlds.run(2, "tests.worlds.audits:in_bfloat16", steps, timeout_s=LIMIT_S) for name, steps in _wrong()}
    print(f"audit in bfloat16: {perf_counter() - start:.0f} s")
    print("| step | clean | cannot tell | named | unexplained | limit of the clean ones | distance over floor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        print(_row(f"right, {kind}", sound[KINDS.index(kind) :: len(KINDS)]))
    for name, found in wrong.items():
        print(_row(name, found))


def _right(count: int) -> Iterable[dict[str, Any]]:
    draw = random.Random(1)
    for number in range(count):
        sizes = {"width": draw.choice([4, 8, 16, 32, 64, 128]), "samples": [draw.randint(3, 40) for _ in range(2)]}
        yield {"how": KINDS[number % len(KINDS)], "model": draw.choice(MODELS), "seed": draw.randrange(10**6), **sizes}


def _wrong() -> Iterable[tuple[str, list[dict[str, Any]]]]:
    for model in MODELS:
        for factor in FACTORS:
            yield f"{model}, loss times {factor}", [{"model": model, "factor": factor, "seed": seed} for seed in SEEDS]
        for other in OTHERS:
            means = {"model": model, "samples": [32, other], "own_means": True}
            yield f"{model}, mean of means over 32 and {other}", [{**means, "seed": seed} for seed in SEEDS]
        for of_one in OF_ONE:
            seeds = range(PARAMETERS)
            yield f"{model}, one parameter times {of_one}", [{"model": model, "of_one": of_one, "seed": seed} for seed in seeds]


def _row(name: str, found: list[dict[str, Any]]) -> str:
    seen = Counter("clean" if one["clean"] else one["verdict"] for one in found)
    named = seen["scale"] + seen["weighting"]
    other = len(found) - named - seen["clean"] - seen["cannot_tell"]
    limits = sorted(one["limit"] for one in found if one["clean"])
    words = f"{limits[0]:.4f} to {limits[-1]:.4f}" if limits else ""
    apart = max(one["distance"] / one["floor"] for one in found)
    counts = " | ".join(str(count) for count in (seen["clean"], seen["cannot_tell"], named, other))
    return f"| {name} | {counts} | {words} | {apart:.2f} |"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
