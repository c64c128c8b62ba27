"""Meaning: with what weights a gradient was really made, and what that is called. Rounding is none of its concern."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.probes.control import Control
from harness.schema.record import Weight


@dataclass(frozen=True)
class Meaning:
    """What a gradient is. Equal on all ranks."""

    verdict: str = ""
    """Empty: what it should be."""
    cause: str = ""
    words: str = ""
    advice: str = ""
    rank: int = -1
    sample: int = -1
    factor: float = math.nan
    distance: float = math.nan
    """|d|."""
    left: float = 0.0
    """What of d the verdict does not explain."""
    length: float = 0.0
    """Of the right gradient."""
    fitting: int = 0
    """How many hypotheses explain all of d."""
    independent: int = 0
    condition: float = math.nan
    residual: float = math.nan
    weights: tuple[Weight, ...] = ()
    also: str = ""
    """A mistake of the ranks' weights that rounding would hide, where nothing is seen to be wrong."""

    @property
    def explained(self) -> float:
        """Share of |d|^2."""
        return 1 - min((self.left / self.distance) ** 2, 1.0) if self.distance else 1.0


def tell(control: Control, meaning: Meaning | None) -> Meaning:
    """Rank 0's, on all ranks."""
    control.meet()
    said: dict[str, Any] = json.loads(control.all_gather_text(json.dumps(asdict(meaning) if meaning else {}))[0])
    return Meaning(**{**said, "weights": tuple(Weight(**one) for one in said["weights"])})


def named(ranks: Sequence[int]) -> str:
    """rank 1; ranks 0, 2."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
