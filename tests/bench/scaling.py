"""What grows with the number of ranks: measured on worlds of 2 to 16 local ranks, and by simulation up to 4,096.

    python -m tests.bench.scaling

The simulation calls a run's own functions, with as many ranks' data as it says, in one process; two columns are formulas, and
are named so. Its store is in memory: what a network adds is not in it.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from time import perf_counter, sleep

import torch
from rich.console import Console
from rich.table import Table
from torch.distributed import HashStore

from harness.rank.gathering import _Table
from harness.rank.lifeline import watched
from harness.rank.writer import Writer
from harness.report.frame import load_run
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases
from harness.schema.rank_state import RankState, RankStatus
from harness.schema.record import METRICS
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.running import is_rank, processes_of, start_launch

LOCAL = (2, 4, 8, 16)
SIMULATED = (16, 64, 256, 1024, 4096)
ITERATIONS, PHASES = 50, 6
PARAMETERS = 300
"""Of a large model; a discrepancy has a row for each."""
_FACTS = {"host": "node0123", "pid": 123456, "device": "cuda:0", "device_name": "NVIDIA H200", "cpus": "0-15", "pci": "0" * 16}


def main() -> None:
    """Three tables."""
    console = Console(width=140)
    console.print(_table("local worlds, gloo", [_local(ranks) for ranks in LOCAL]))
    console.print(_table("the largest of them, TORCH_GLOO_LAZY_INIT=1", [_local(LOCAL[-1], "+env.TORCH_GLOO_LAZY_INIT=1")]))
    console.print(_table("simulated", [_simulated(ranks) for ranks in SIMULATED]))


def _table(title: str, rows: list[dict[str, float]]) -> Table:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    return table


def _local(ranks: int, *overrides: str) -> dict[str, float]:
    """One small run."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["workload=[mlp_digits]", "reduction=[mean,sum]", f"torchrun.nproc_per_node={ranks}", f"results_dir={folder}"]
        start = perf_counter()
        process = start_launch(*asked, "global_batch_size=64", *overrides)
        sockets = _most_sockets(process, Path(folder))
        wall = perf_counter() - start
        assert process.returncode == 0, process.communicate()[0]
        run_dir = RunDir((Path(folder) / "default" / "latest").resolve())
        run, statuses = load_run(run_dir.path), run_dir.ranks.statuses()
        memory = run.every("memory").groupby("rank").peak_memory_bytes.max() / 2**20
        reached = statuses[0].reached
        return {
            "ranks": ranks,
            "command to end, s": wall,
            "rank 0 from its start to the first case, s": reached["pre-flight"] - reached["start"],
            "a case, s": float(run.cases.wall_s.median()),
            "peak of rank 0, MiB": float(memory[0]),
            "of the others, MiB": float(memory[1:].median()),
            "sockets of a rank, least": min(sockets),
            "and most": max(sockets),
            "files": sum(1 for path in run_dir.path.rglob("*") if path.is_file()),
        }


def _most_sockets(process: "subprocess.Popen[str]", folder: Path) -> list[int]:
    """The most that each rank was seen to hold open at once, until the run has ended."""
    most = dict[int, int]()
    while process.poll() is None:
        for pid, command in processes_of(folder).items():
            if is_rank(command):
                most[pid] = max(most.get(pid, 0), _sockets(pid))
        sleep(0.1)
    return list(most.values())


def _sockets(pid: int) -> int:
    """0 for a process that has ended."""
    number = 0
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                number += str(entry.readlink()).startswith("socket:")
    return number


def _simulated(ranks: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        config = compose_config([f"results_dir={folder}", f"global_batch_size={ranks}"], nproc_per_node=ranks)
        run_dir = _run_dir(Path(folder), config)
        case = expand_cases(config)[0]
        return {
            "ranks": ranks,
            "rank 0 hears of all, s": _hear(ranks),
            "ranks that each asks": len(watched(0, ranks)),
            "the launcher's look, s": _look(run_dir, ranks),
            "a case's samples, s": _timed(lambda: _write_samples(run_dir, case, ranks)),
            "and MiB": (run_dir.path / "samples" / f"{case.case_id}.parquet").stat().st_size / 2**20,
            "metrics gathered on rank 0, MiB (formula)": ranks * PARAMETERS * len(METRICS) * 8 / 2**20,
            "facts told to each rank, MiB (formula)": ranks * len(json.dumps(_FACTS)) / 2**20,
        }


def _run_dir(folder: Path, config: BenchmarkConfig) -> RunDir:
    return RunDir.create(config, datetime.now())


def _hear(ranks: int) -> float:
    """Rank 0's part of one question, when the others have answered it."""
    store, said = HashStore(), ["10.0.0.1:12345", "node0123"]
    for rank in range(1, ranks):
        store.set(f"reducebench/here/{rank}", json.dumps(said))
    return _timed(lambda: _Table(store, 0, ranks, 60.0).share("here", said))


def _look(run_dir: RunDir, ranks: int) -> float:
    for rank in range(ranks):
        RankState(run_dir.ranks.state(rank), RankStatus(rank=rank, pid=1, host="node0123"))
    return _timed(run_dir.ranks.statuses)


def _write_samples(run_dir: RunDir, case: Case, ranks: int) -> None:
    columns = [(f"phase{place}", "host") for place in range(PHASES)]
    seconds = [torch.rand(ITERATIONS, PHASES, dtype=torch.float64) for _ in range(ranks)]
    Writer(run_dir).write_samples(case, columns, seconds, [(0, ITERATIONS)])


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start


if __name__ == "__main__":
    main()
