"""The interval of a median: against the tables of the binomial distribution, and against drawn medians."""

import torch

from harness.numerics.intervals import median_interval


def test_it_lies_between_the_order_statistics_that_the_tables_give() -> None:
    for n, rank in ((6, 1), (10, 2), (20, 6), (40, 14), (100, 40)):
        values = torch.randperm(n, generator=torch.Generator().manual_seed(n)).double() + 1
        assert median_interval(values) == (rank, n + 1 - rank)


def test_five_values_say_nothing() -> None:
    assert median_interval(torch.arange(5.0)) == (float("-inf"), float("inf"))


def test_it_covers_the_median_as_often_as_it_says() -> None:
    """Of a skewed distribution; 4,000 draws have a standard error of 0.35 %."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.empty(4000, 25, dtype=torch.float64).log_normal_(0, 1, generator=generator)
    covered = sum(low <= 1 <= high for low, high in map(median_interval, drawn)) / len(drawn)
    assert 0.945 < covered < 0.975, "0.957 by the binomial distribution"


def test_it_goes_on_beyond_a_thousand_values() -> None:
    """There by the normal distribution, which is one place off at most."""
    for n, rank in ((1000, 469), (1001, 470), (1024, 481), (5000, 2431)):
        low, high = median_interval(torch.arange(1, n + 1, dtype=torch.float64))
        assert abs(low - rank) <= 1 and low + high == n + 1
