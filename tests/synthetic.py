"""Run directories whose truth is known, written without a rank: what reports are tested on."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases
from harness.schema.record import METRICS, OK, RANK_0, REFERENCE, SCHEMA_VERSION, Outcome
from harness.schema.run_dir import RunDir
from launch.compose import compose_config

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
PHASES = ("forward", "backward", "aggregate", "step")
MIB = 2**20
_FINDINGS = pa.schema(
    [("launch", pa.int32()), *((text, pa.string()) for text in ("case_id", "kind", "statement")), ("evidence", pa.float64())]
)
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
    row = asdict(Outcome(case_id=case.case_id, **told))
    row |= {"launch": launch, **case.options, **dict(case.parameters)}
    if told["status"] == OK:
        visits = config.rounds if config.order == "interleaved" else 1
        pq.write_table(samples(case.case_id, launch, seconds, visits), run_dir.case_file("samples", case.case_id, launch))
        far = {**dict.fromkeys(METRICS, 0.0), "relative_l2": relative_l2(case, launch)}
        equal = {**dict.fromkeys(METRICS, 0.0), "bitwise_equal": 1.0}
        label = {"case_id": case.case_id, "launch": launch, "parameter": ""}
        rows = [{**label, "rank": 0, "against": REFERENCE, **far}]
        rows += [{**label, "rank": rank, "against": RANK_0, **equal} for rank in range(1, config.world_size)]
        pq.write_table(pa.Table.from_pylist(rows), run_dir.case_file("discrepancies", case.case_id, launch))
        taken = dict.fromkeys(("peak_memory_bytes", "above_bare_bytes", "declared_bytes"), 0)
        memory = [{"case_id": case.case_id, "launch": launch, "rank": rank, **taken} for rank in range(config.world_size)]
        pq.write_table(pa.Table.from_pylist(memory), run_dir.case_file("memory", case.case_id, launch))
        pq.write_table(_FINDINGS.empty_table(), run_dir.case_file("findings", case.case_id, launch))
    pq.write_table(pa.Table.from_pylist([row]), run_dir.case_file("cases", case.case_id, launch))


def samples(case_id: str, launch: int, seconds: Mapping[tuple[str, str], np.ndarray], visits: int = 1) -> pa.Table:
    """Rows as ranks write them: rank after rank, iteration after iteration; the first is a warm-up, and twice as long."""
    measured = np.stack(list(seconds.values()), axis=2).swapaxes(0, 1)
    table = np.concatenate([2 * measured[:, :1], measured], axis=1)
    rank, iteration, column = (place.ravel() for place in np.indices(table.shape, dtype=np.int32))
    phases, clocks = zip(*((phase, clock) for clock, phase in seconds), strict=True)
    visit = np.maximum(iteration - 1, 0) * visits // (table.shape[1] - 1)
    return pa.table(
        {
            "case_id": pa.DictionaryArray.from_arrays(np.zeros(len(rank), np.int32), pa.array([case_id])),
            "launch": pa.array(np.full(len(rank), launch, np.int32)),
            "rank": pa.array(rank),
            "visit": pa.array(visit.astype(np.int32)),
            "iteration": pa.array(iteration),
            "warm_up": pa.array(iteration == 0),
            "phase": pa.DictionaryArray.from_arrays(column, pa.array(phases)),
            "clock": pa.DictionaryArray.from_arrays(column, pa.array(clocks)),
            "seconds": pa.array(table.ravel()),
        }
    )


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
