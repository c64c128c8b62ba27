"""How many different bit patterns a repeated computation leaves, and how far apart they are."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.numerics.discrepancy import compare_all
from harness.schema.record import Observation
from harness.tensors.bits import bits

Gradient = list[tuple[str, Tensor]]


@dataclass
class Patterns:
    """Gradients of one computation, seen one after the other; the first is kept, of the others what differs."""

    first: Gradient | None = None
    runs: int = 0
    digests: set[bytes] = field(default_factory=set)
    relative_l2: float = 0.0
    """The largest from the first."""

    def see(self, gradient: Gradient) -> None:
        """Count one more."""
        self.runs += 1
        if self.first is None:
            self.first = [(name, tensor.clone()) for name, tensor in gradient]
            self.digests.add(digest(gradient))
        elif not all(torch.equal(one, other) for (_, one), (_, other) in zip(gradient, self.first, strict=True)):
            self.digests.add(digest(gradient))
            apart = compare_all(gradient, self.first)[0].relative_l2
            self.relative_l2 = math.nan if math.isnan(apart) else max(self.relative_l2, apart)

    def observations(self, setting: str) -> Iterator[Observation]:
        """runs, distinct, and the largest relative L2 from the first run."""
        yield Observation(setting, "runs", self.runs)
        yield Observation(setting, "distinct", len(self.digests))
        yield Observation(setting, "relative_l2", self.relative_l2)


def patterns_of(gradients: Iterable[Gradient]) -> Patterns:
    """All of them."""
    patterns = Patterns()
    for gradient in gradients:
        patterns.see(gradient)
    return patterns


def digest(gradient: Gradient) -> bytes:
    """SHA-256 of all bits."""
    found = hashlib.sha256()
    for _, tensor in gradient:
        found.update(bits(tensor).numpy().tobytes())
    return found.digest()
