"""A torchrun world of three ranks on what they are made to take for two hosts, the second one's clock being ahead.

    torchrun --nproc-per-node=3 -m tests.worlds.clocks OUT.json AHEAD_S

Rank 0 writes {"shared": whether there is one clock, "offsets": [[seconds ahead, uncertainty] of each rank], "largest": ...}.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from harness.rank import common_clock
from harness.rank.common_clock import CommonClock
from harness.rank.process_group import World, open_store
from tests.options import CONFIG


def main(out: Path, ahead_s: float) -> None:
    world = World.open(CONFIG, *open_store())
    here = CommonClock.open(world.control)
    elsewhere = world.rank > 0
    common_clock.clock_identity = lambda: f"host {elsewhere}"
    common_clock.perf_counter = lambda: perf_counter() + ahead_s * elsewhere
    clock = CommonClock.open(world.control)
    offset = clock.offset()
    own = torch.tensor([offset.ahead_s, offset.uncertainty_s], dtype=torch.float64)
    offsets = [told.tolist() for told in world.control.all_gather(own)]
    drifted = replace(offset, ahead_s=offset.ahead_s + (0.25 if world.rank == 2 else 0.0))
    largest = clock.largest_uncertainty(offset, drifted)
    if world.rank == 0:
        out.write_text(json.dumps({"shared": here.shared, "offsets": offsets, "largest": largest}))
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
