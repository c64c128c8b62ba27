"""The price of a policy: visit against visit, an interval over launches, and what cannot be told."""

import random

import numpy as np
import pytest

from harness.report.price import COSTS, SAVES, TOO_FEW, difference

Steps = dict[tuple[int, int], float]


def steps(launches: int, visits: int, cost: float, noise: float, seed: int) -> tuple[Steps, Steps]:
    """(policy, none): launches differ by half, visits drift, and both sides share that."""
    draw = random.Random(seed)
    speed = [draw.uniform(1.0, 1.5) for _ in range(launches)]
    none = {(k, v): speed[k] + 0.1 * v + draw.gauss(0, noise) for k in range(launches) for v in range(visits)}
    return {at: speed[at[0]] + 0.1 * at[1] + cost + draw.gauss(0, noise) for at in none}, none


def test_what_launches_and_visits_share_falls_out() -> None:
    found = difference(*steps(launches=5, visits=4, cost=0.02, noise=0.0, seed=1))
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, 0.02, 0.02))
    assert (found.units, found.of, found.verdict) == (5, "launches", COSTS)
    assert difference(*steps(launches=5, visits=4, cost=-0.02, noise=1e-4, seed=1)).verdict == SAVES


def test_one_launch_is_told_by_its_visits() -> None:
    found = difference(*steps(launches=1, visits=5, cost=0.02, noise=1e-3, seed=2))
    assert (found.units, found.of, found.verdict) == (5, "visits", COSTS)


def test_two_of_anything_make_no_interval() -> None:
    for launches, visits in ((2, 5), (1, 2), (1, 1)):
        found = difference(*steps(launches, visits, cost=5.0, noise=0.1, seed=3))
        assert np.isnan(found.low) and found.verdict == TOO_FEW


def test_the_interval_is_right_as_often_as_it_says() -> None:
    """1,000 draws have a standard error of 0.7 %."""
    draws = [difference(*steps(5, 3, cost=0.02, noise=0.05, seed=seed)) for seed in range(1000)]
    assert 0.925 < np.mean([found.low <= 0.02 <= found.high for found in draws]) < 0.975
