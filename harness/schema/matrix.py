"""The matrix: every case that a configuration asks for."""

import itertools
from random import Random
from typing import Any

from harness.schema.case import AXES, COMPARED, Case
from harness.schema.config import BenchmarkConfig, check_size
from harness.schema.seeding import derive_seed
from harness.schema.sweep import variants


def expand_cases(config: BenchmarkConfig) -> list[Case]:
    """Return every combination of the selected options; the cases of one setting stand together.

    Raises RefusedError for more cases than a run may have.
    """
    check_size(config)
    order = sorted(AXES, key=lambda axis: axis == COMPARED)
    columns = [[(axis, option, variant) for option, variant in variants(getattr(config, axis))] for axis in order]
    return [_case(cell) for cell in itertools.product(*columns)]


def expected_files(config: BenchmarkConfig, launch: int = 0) -> dict[str, list[str]]:
    """Table to the names of what it holds when a launch is complete: cases; and probes, which the first launch asks."""
    return {"cases": [case.case_id for case in expand_cases(config)], "probes": [] if launch else list(config.probe)}


def ordered_cases(config: BenchmarkConfig, launch: int) -> list[Case]:
    """The cases as a launch goes through them; a shuffled order is another one in each launch, and the same in each run."""
    cases = expand_cases(config)
    if config.order == "shuffled":
        Random(derive_seed(config.seed, "order", str(launch))).shuffle(cases)
    return cases


def _case(cell: tuple[tuple[str, str, dict[str, Any]], ...]) -> Case:
    return Case(**{axis: option for axis, option, _ in cell}, nodes={axis: node for axis, _, node in cell})
