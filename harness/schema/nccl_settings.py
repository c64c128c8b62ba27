"""The environment variables by which nccl_matrix tells NCCL what to choose."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

ALGORITHM, PROTOCOL = "NCCL_ALGO", "NCCL_PROTO"
LEAST_CHANNELS, MOST_CHANNELS = "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS"
SETTINGS = (ALGORITHM, PROTOCOL, LEAST_CHANNELS, MOST_CHANNELS)
CHANNELS = 64
"""Largest number of channels of a communicator (MAXCHANNELS of NCCL 2.21 to 2.30)."""
MOST_COMBINATIONS = 1000
_VALUE = re.compile(r"[\w,:;^]{1,100}", re.ASCII)
"""NCCL 2.24 and later also take `allreduce:ring`, and several of them with ; between."""


def is_setting(value: str) -> bool:
    """True if the text can be a value of NCCL_ALGO or NCCL_PROTO; NCCL alone knows if it is one."""
    return bool(_VALUE.fullmatch(value))


@dataclass(frozen=True)
class Combination:
    """Settings of one run of a matrix; empty and 0: NCCL's own choice."""

    algorithm: str = ""
    protocol: str = ""
    channels: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of the ranks."""
        texts = {ALGORITHM: self.algorithm, PROTOCOL: self.protocol}
        numbers = dict.fromkeys((LEAST_CHANNELS, MOST_CHANNELS), str(self.channels or ""))
        return {name: value for name, value in (texts | numbers).items() if value}

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.variables.items()) or "NCCL's own choice"


def combination_of(variables: Mapping[str, str]) -> Combination:
    """Return what environment variables ask NCCL for; bounds on channels that differ are not a combination."""
    least, most = (variables.get(name, "") for name in (LEAST_CHANNELS, MOST_CHANNELS))
    channels = int(most) if least == most and most.isascii() and most.isdigit() and len(most) < _DIGITS else 0
    return Combination(variables.get(ALGORITHM, ""), variables.get(PROTOCOL, ""), channels)


_DIGITS = 10
