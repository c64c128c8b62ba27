"""Ranks that hold different bits after an all-reduce: which, and whether they hold nothing but their own parts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.probes.bits import digest
from harness.probes.control import Control
from harness.probes.diagnosis.meaning import Meaning, named
from harness.probes.diagnosis.products import PIECE_BYTES, RESOLVED, dot, projected
from harness.probes.diagnosis.witness import Witness
from harness.schema.record import NOT_REDUCED, RANKS_DISAGREE


def unlike_ranks(control: Control, value: Tensor) -> list[bool]:
    """Which ranks do not hold rank 0's bits."""
    control.meet()
    own = digest([("", piece) for piece in value.split(PIECE_BYTES)])
    digests = control.all_gather(torch.frombuffer(bytearray(own), dtype=torch.uint8))
    return [not torch.equal(one, digests[0]) for one in digests]


def meaning_of_unlike(witness: Witness, value: Tensor, noise: float, unlike: Sequence[bool]) -> Meaning:
    """Of ranks that hold different bits: whether some hold nothing but their own part."""
    control, own = witness.control, witness.summed()
    factor, left = projected(value, own)
    norm = dot(value, value) ** 0.5
    alone = left <= max(noise, RESOLVED * norm)
    control.meet()
    told = control.all_gather(torch.tensor([float(alone), factor, norm, left], dtype=torch.float64))
    ranks = [rank for rank, (is_own, *_) in enumerate(torch.stack(told).tolist()) if is_own]
    norms, lefts = (torch.stack(told)[:, column] for column in (2, 3))
    if ranks:
        who = "every rank holds" if len(ranks) == control.size else f"{named(ranks)} hold{'s' * (len(ranks) == 1)}"
        return Meaning(
            NOT_REDUCED,
            "not_reduced",
            f"{who} its own part alone" if len(ranks) < 2 or len(ranks) == control.size else f"{who} their own parts alone",
            "look whether the all-reduce is reached on every rank, and waited for before its result is read",
            rank=ranks[0] if len(ranks) == 1 else -1,
            distance=float(norms[ranks[0]]),
            left=float(lefts[ranks[0]]),
            length=float(norms[ranks[0]]),
            fitting=1,
        )
    others = [rank for rank, other in enumerate(unlike) if other]
    return Meaning(
        RANKS_DISAGREE,
        "ranks_disagree",
        f"after the aggregation {named(others)} hold{'s' * (len(others) == 1)} other bits than rank 0",
        "after an all-reduce all ranks hold the same bits: look for a missed or doubled collective, a race, or a faulty link",
        rank=others[0] if len(others) == 1 else -1,
        fitting=1,
    )
