"""Given shares."""

import itertools
from collections.abc import Sequence
from typing import Annotated

from harness.axes.sharding.base import Sharding
from harness.schema.parameters import NotEmpty, Range

Share = Annotated[float, Range(0, 1e9, above=True)]
"""Upper limit: sums of larger shares are not exact enough to divide a batch."""


class UnevenSharding(Sharding):
    """Runs of neighbouring samples in proportion to `shares`, which ranks take in turn; every rank has one sample at least."""

    def __init__(self, shares: Annotated[Sequence[Share], NotEmpty()] = (3, 1)) -> None:
        self._shares = tuple(shares)

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        shares = list(itertools.islice(itertools.cycle(self._shares), world_size))
        left = len(terms) - world_size  # one each, and the rest by share
        ends = [rank + round(left * part / sum(shares)) for rank, part in enumerate(itertools.accumulate(shares), 1)]
        return [list(range(start, end)) for start, end in itertools.pairwise([0, *ends])]
