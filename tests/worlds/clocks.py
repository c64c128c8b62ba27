"""Three ranks on two pretended hosts, the second one's clock being ahead."""

from dataclasses import replace
from time import perf_counter
from unittest.mock import patch

import torch

from harness.rank import common_clock
from harness.rank.common_clock import CommonClock
from harness.rank.process_group import World


def offsets(world: World, ahead_s: float) -> dict[str, object]:
    """Return {"shared": whether there is one clock, "offsets": [[seconds ahead, uncertainty] of each rank], "largest": ...}."""
    here = CommonClock.open(world.control)
    elsewhere = world.rank > 0
    with (
        patch.object(common_clock, "clock_identity", lambda: f"host {elsewhere}"),
        patch.object(common_clock, "perf_counter", lambda: perf_counter() + ahead_s * elsewhere),
    ):
        clock = CommonClock.open(world.control)
        offset = clock.offset()
        own = torch.tensor([offset.ahead_s, offset.uncertainty_s], dtype=torch.float64)
        everyone = [told.tolist() for told in world.control.all_gather(own)]
        drifted = replace(offset, ahead_s=offset.ahead_s + (0.25 if world.rank == 2 else 0.0))
        largest = clock.largest_uncertainty(offset, drifted)
    return {"shared": here.shared, "offsets": everyone, "largest": largest}
