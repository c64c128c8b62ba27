"""A matrix of NCCL's settings: one run for each combination, because NCCL reads its environment once a process."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from harness.schema.arguments import NcclMatrixConfig
from harness.schema.config import BenchmarkConfig
from harness.schema.nccl_settings import SETTINGS, Combination
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.job import settle


def matrix_runs(config: BenchmarkConfig, asked: NcclMatrixConfig) -> list[tuple[Combination, BenchmarkConfig]]:
    """The runs in order, each with what it asks NCCL for; in the first, NCCL decides. Raises RefusedError."""
    exported = next((name for name in SETTINGS if name in os.environ), "")
    if exported:
        raise RefusedError(
            f"{exported}={os.environ[exported]} is exported, and nccl_matrix also runs without it; try unset {exported}"
        )
    different = dict.fromkeys(
        Combination(algorithm, protocol, channels)
        for algorithm, protocol, channels in product(asked.algorithms or [""], asked.protocols or [""], asked.channels or [0])
    )
    combinations = [Combination(), *(each for each in different if each != Combination())]
    return [(each, settle(_with(config, each))) for each in combinations]


def _with(config: BenchmarkConfig, combination: Combination) -> BenchmarkConfig:
    return replace(config, env={**config.env, **combination.variables})


def again(run_dirs: Sequence[RunDir]) -> str:
    """Command that shows the table of these runs again."""
    return f"python -m harness.report show {' '.join(shlex.quote(str(run_dir.path)) for run_dir in run_dirs)}"
