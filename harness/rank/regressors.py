"""Regressors: the float64 gradients that a case's gradient is a combination of, by rank and by sample, in files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.axes.workload.base import Batch
from harness.rank.gradient_store import Flats
from harness.rank.material import Material
from harness.rank.reference import References


@dataclass(frozen=True)
class Regressors:
    """Of one rank's part of a workload's batches, each computed when it is first asked for."""

    flats: Flats
    references: References
    material: Material
    shards: Sequence[Sequence[int]]
    """This rank's samples: [lag]."""

    def summed(self, lag: int) -> Tensor:
        """Of all losses of the rank's batch."""
        return self.flats.once(f"summed.{lag}", lambda: self._sum(self._batch(lag, self.shards[lag])))

    def without(self, sample: int) -> Tensor:
        """Of the batch without one of them."""
        left = [index for place, index in enumerate(self.shards[0]) if place != sample]
        return self.flats.once(f"without.{sample}", lambda: self._sum(self._batch(0, left)))

    def apart(self) -> Tensor:
        """Of every sample in a batch of its own."""
        return self.flats.once("apart", self._sum_apart)

    def samples(self) -> list[Tensor]:
        """Of each loss, in the batch that it is in."""
        names = [f"sample.{place}" for place in range(len(self.shards[0]))]
        if not all(name in self.flats for name in names):
            made = self.references.each(self.material, self._batch(0, self.shards[0]))
            for name, one in zip(names, made, strict=True):
                self.flats.save(name, one.values())
        return [self.flats.load(name) for name in names]

    def signed(self, seed: int) -> Tensor:
        """Of the losses times random signs: its expected square is the sum of the squares of each one's gradient."""
        batch, generator = self._batch(0, self.shards[0]), torch.Generator().manual_seed(seed)
        signs = (torch.randint(0, 2, (len(batch),), generator=generator) * 2 - 1).tolist()
        return self.flats.once(f"signed.{seed}", lambda: self._sum(batch, signs))

    def _batch(self, lag: int, indices: Sequence[int]) -> Batch:
        return self.material.batches[lag][torch.tensor(list(indices), dtype=torch.long)]

    def _sum(self, batch: Batch, weights: Sequence[float] | None = None) -> Iterable[Tensor]:
        return self.references.summed(self.material, batch, weights).values()

    def _sum_apart(self) -> Iterable[Tensor]:
        total = [torch.zeros_like(part) for part in self._sum(self._batch(0, []))]
        for index in self.shards[0]:
            torch._foreach_add_(total, list(self._sum(self._batch(0, [index]))))
        return total
