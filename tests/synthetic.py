"""Run directories whose truth is known, written without a rank: what reports are tested on."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from harness.rank.writer import Writer, sample_rows
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases
from harness.schema.record import METRICS, OK, RANK_0, REFERENCE, SCHEMA_VERSION, Discrepancy, Memory, Outcome
from harness.schema.run_dir import RunDir
from launch.compose import compose_config

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
PHASES = ("forward", "backward", "aggregate", "step")
MIB = 2**20
ZERO = dict.fromkeys(METRICS, 0.0)
EQUAL = ZERO | {"bitwise_equal": 1.0}
Seconds = Callable[[Case, int], Mapping[tuple[str, str], np.ndarray]]
"""Of a case and launch: (clock, phase) to [iterations, ranks]."""


def make_run(folder: Path, seconds: Seconds, *overrides: str, ranks: int = 2, **outcome: Callable[[Case, int], Any]) -> RunDir:
    """A finished run; `outcome` gives columns of `cases`, and `relative_l2` the distance from the reference."""
    config = compose_config([*overrides, f"results_dir={folder}"], nproc_per_node=ranks)
    run_dir = RunDir.create(config, NOW)
    environment = {"schema_version": SCHEMA_VERSION, "world_size": ranks, "device": "cpu", "backend": "gloo", "cores": ranks}
    hosts = [{"host": "here", "pid": str(rank), "device": "cpu", "device_name": "cpu"} for rank in range(ranks)]
    run_dir.write_environment({**environment, "ranks": hosts})
    for launch in range(config.launches):
        for position, case in enumerate(expand_cases(config)):
            write_case(run_dir, config, case, launch, seconds(case, launch), position=position, **outcome)
    return run_dir


def write_case(
    run_dir: RunDir,
    config: BenchmarkConfig,
    case: Case,
    launch: int,
    seconds: Mapping[tuple[str, str], np.ndarray],
    *,
    position: int = 0,
    relative_l2: Callable[[Case, int], float] = lambda case, launch: 1e-7,
    **outcome: Callable[[Case, int], Any],
) -> None:
    """One case of one launch: samples, its distance from the reference, and its row."""
    told = {"peak_memory_bytes": 100 * MIB, "status": OK, "position": position}
    told |= {column: value(case, launch) for column, value in outcome.items()}
    writer = Writer(run_dir, launch, config)
    if told["status"] == OK:
        visits = config.rounds if config.order == "interleaved" else 1
        writer.write_samples(case, *_sampled(seconds, visits))
        far = ZERO | {"relative_l2": relative_l2(case, launch)}
        rows = [Discrepancy.of(case.case_id, 0, REFERENCE, "", list(far.values()))]
        rows += [Discrepancy.of(case.case_id, rank, RANK_0, "", list(EQUAL.values())) for rank in range(1, config.world_size)]
        writer.write("discrepancies", case.case_id, rows)
        writer.write("memory", case.case_id, [Memory(case.case_id, rank, 0, 0, 0) for rank in range(config.world_size)])
        writer.write("findings", case.case_id, [])
    writer.write_outcome(case, Outcome(case_id=case.case_id, **told))


def samples(case_id: str, launch: int, seconds: Mapping[tuple[str, str], np.ndarray]) -> pa.Table:
    """Rows as ranks write them."""
    return sample_rows(case_id, launch, *_sampled(seconds, 1))


def _sampled(
    seconds: Mapping[tuple[str, str], np.ndarray], visits: int
) -> tuple[list[tuple[str, str]], list[torch.Tensor], list[tuple[int, int]]]:
    """(phase, clock) of each column, [iterations, columns] of each rank, and (warm-ups, measured) of each visit.

    The first iteration is a warm-up, and twice as long as the one after it.
    """
    measured = np.stack(list(seconds.values()), axis=2).swapaxes(0, 1)
    whole = np.concatenate([2 * measured[:, :1], measured], axis=1)
    shares = [len(places) for places in np.array_split(np.arange(measured.shape[1]), visits)]
    columns = [(phase, clock) for clock, phase in seconds]
    return columns, list(map(torch.from_numpy, whole)), [(int(visit == 0), share) for visit, share in enumerate(shares)]


def steps(medians: Sequence[float] | float, *, iterations: int = 20, ranks: int = 2, noise: float = 0.01) -> Seconds:
    """Every case's step takes as long as `medians` says of the launch, more or less; its parts a quarter, a quarter, a half."""

    def seconds(case: Case, launch: int) -> Mapping[tuple[str, str], np.ndarray]:
        median = medians if isinstance(medians, float) else medians[launch]
        random = np.random.default_rng([launch, *case.case_id.encode()])
        step = median * (1 + noise * random.standard_normal((iterations, ranks)))
        shares = dict(zip(PHASES, (0.25, 0.25, 0.5, 1.0), strict=True))
        return {("host", phase): share * step for phase, share in shares.items()}

    return seconds


def read_json(path: Path) -> Any:
    """What a command has left."""
    return json.loads(path.read_text())
