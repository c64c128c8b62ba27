"""Traces: a profiled pass over the measured cases once all are measured, so that no sample is of a process under a profiler."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from harness.axes.reduction.base import Phases
from harness.rank.process_group import World
from harness.schema.run_dir import RunDir
from harness.schema.whole_files import make_folder, writing

MOST = 10
"""Iterations that are traced; a trace grows by a few hundred kilobytes each."""


@dataclass(frozen=True)
class Tracer:
    """Writes one Kineto trace a rank and case."""

    run_dir: RunDir
    world: World

    def record(self, case_id: str, iterate: Callable[[int], None], iterations: int, warm_up: int) -> None:
        """Call `iterate` with how many iterations are left, warm-ups first, and write the trace of those after them."""
        traced = min(iterations, MOST)
        warm_up = max(1, warm_up)  # the profiler has one of its own
        path = self.path(case_id)
        make_folder(path.parent, self.run_dir.path)
        with profile(
            activities=self._activities(),
            schedule=schedule(wait=0, warmup=warm_up, active=traced, repeat=1),
            on_trace_ready=partial(_export, path=path, below=self.run_dir.path),
            record_shapes=True,
        ) as profiler:
            for left in reversed(range(warm_up + traced)):
                if left == traced - 1:
                    self._label(profiler, case_id)
                iterate(left)
                profiler.step()

    def path(self, case_id: str) -> Path:
        """Of this rank's trace."""
        return self.run_dir.trace(case_id, self.world.rank)

    def _activities(self) -> list[ProfilerActivity]:
        return [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.world.device.type == "cuda")

    def _label(self, profiler: profile, case_id: str) -> None:
        """Torch tells of the default group, which is the one that is not measured: this takes its place."""
        world = self.world
        told = {"backend": world.backend, "rank": world.rank, "world_size": world.size}
        profiler.add_metadata_json("distributedInfo", json.dumps(told))
        profiler.add_metadata_json("reducebench", json.dumps({"case_id": case_id, "device": str(world.device)}))


def named(phases: Phases) -> Callable[[], None]:
    """The phases one after the other, each as a range of its name."""

    def run() -> None:
        for name, call in phases:
            with record_function(name):
                call()

    return run


def _export(profiler: profile, path: Path, below: Path) -> None:
    """Whole, or not at all: torch writes where it likes first."""
    with TemporaryDirectory(dir=path.parent, prefix=".") as folder, writing(path, below) as file:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with plain.open("rb") as trace, gzip.open(file, "wb") as packed:
            shutil.copyfileobj(trace, packed)
