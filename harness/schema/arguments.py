"""Arguments: what a command asks for that is no fact of a run. They are not written to config.yaml.

Each has a flag of `python -m launch`, or is given as `key=value`, or stands in an experiment.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from harness.schema.conversion import to_dataclass
from harness.schema.keys import argument, declared, keys_of
from harness.schema.nccl_settings import CHANNELS, MOST_COMBINATIONS, SETTINGS, is_setting

_LISTS = ("algorithms", "protocols", "channels")
"""Keys of nccl_matrix."""


@dataclass
class NcclMatrixConfig:
    """One run for each combination of NCCL's settings, and one table over them; all empty: one run. For python -m launch."""

    algorithms: list[str] = argument([], help="Values of NCCL_ALGO: `nccl_matrix.algorithms=[RING,TREE]`.")
    protocols: list[str] = argument([], help="Values of NCCL_PROTO: `nccl_matrix.protocols=[LL,SIMPLE]`.")
    channels: list[int] = argument([], help="Values of NCCL_MIN_NCHANNELS and NCCL_MAX_NCHANNELS together; 0: NCCL decides.")

    def __post_init__(self) -> None:
        unfit = [(key, value) for key in ("algorithms", "protocols") for value in getattr(self, key) if not is_setting(value)]
        if unfit:
            accepted = "1 to 100 letters, digits and _ , : ; ^; try RING or LL128"
            raise ValueError(f"nccl_matrix.{unfit[0][0]}={unfit[0][1]!r}: not a value of NCCL; accepted: {accepted}")
        beyond = [value for value in self.channels if not 0 <= value <= CHANNELS]
        if beyond:
            accepted = f"whole numbers from 1 to {CHANNELS}, or 0 for NCCL's own choice"
            raise ValueError(f"nccl_matrix.channels={beyond[0]}: out of range; accepted: {accepted}")
        self._check_lists()

    def _check_lists(self) -> None:
        for key in _LISTS:
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"nccl_matrix.{key}={getattr(self, key)}: a value occurs twice; accepted: different values")
        if self.asked and math.prod(max(1, len(values)) for values in self._values) > MOST_COMBINATIONS:
            raise ValueError(f"nccl_matrix: more than {MOST_COMBINATIONS} combinations, one run each; try shorter lists")

    @property
    def asked(self) -> bool:
        """True if the configuration asks for a matrix."""
        return any(self._values)

    @property
    def _values(self) -> tuple[list[Any], ...]:
        return self.algorithms, self.protocols, self.channels


@declared
@dataclass
class Arguments:
    """Arguments of `python -m launch`: what is done with a configuration."""

    resume: str | None = argument(
        None, help="Resume the run in this directory: only what is missing in it, or failed, is measured."
    )
    accept_changes: bool = argument(False, help="Resume although the run's configuration or its environment has changed.")
    accept_owner: bool = argument(
        False,
        help="Resume a run that belongs to another user, or that every user may change: its config.yaml decides what "
        "is executed.",
    )
    dry_run: bool = argument(
        False, help="Print what would be run, and start nothing; of a resume, also what its configuration would execute here."
    )
    world_sizes: list[int] = argument([], help="Start one run for each of these numbers of ranks, with one report over them.")
    nccl_matrix: NcclMatrixConfig = field(default_factory=NcclMatrixConfig)

    def __post_init__(self) -> None:
        if not (self.resume or "").isprintable():
            raise ValueError(f"resume={self.resume!r}: expected a path without control characters")
        if any(size < 1 for size in self.world_sizes) or len(set(self.world_sizes)) < len(self.world_sizes):
            raise ValueError(f"world_sizes={self.world_sizes}: expected different numbers of ranks, each at least 1")
        if self.world_sizes:
            self.check_beside_nccl_matrix("world_sizes")

    def check_beside_nccl_matrix(self, key: str) -> None:
        """Raise ValueError if a matrix of NCCL's settings is asked for, too."""
        if self.nccl_matrix.asked:
            raise ValueError(f"{key} with nccl_matrix: nccl_matrix makes the runs and sets {', '.join(SETTINGS)} in each")

    def check_environment(self, variables: dict[str, str]) -> None:
        """Raise ValueError for a variable of the ranks that nccl_matrix sets."""
        twice = next((name for name in SETTINGS if name in variables), "")
        if twice:
            self.check_beside_nccl_matrix(f"env.{twice}")


ARGUMENTS = tuple(dict.fromkeys(each.name.partition(".")[0] for each in keys_of(Arguments)))
"""Top-level names. The config.yaml of a run before version 5 holds them, too."""


def to_arguments(node: DictConfig) -> Arguments:
    """Return the arguments that a structured node holds. Raises RefusedError."""
    made: Arguments = to_dataclass(node, ("world_sizes", *(f"nccl_matrix.{name}" for name in _LISTS)))
    return made
