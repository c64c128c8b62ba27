"""A whole run whose ranks have the GPUs of a stand-in for NVML."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.rank.process_group import World
from harness.rank.telemetry import Telemetry, Window
from harness.schema.case import Case
from tests.worlds import session

_SAMPLES = 8
_VISITED = Telemetry.visited


def measure(world: World, script: dict[str, Any], standins: str, results: str, path: str) -> str:
    """Run a matrix of one case; return the run directory. Rank k has the GPU `gpu<k>` of the script."""
    if world.rank == 0:
        Path(path).write_text(json.dumps(script))
    world.control.meet()
    sys.modules.pop("pynvml", None)
    uuid = f"gpu{world.rank}"
    try:
        with (
            patch.dict(os.environ, NVML_SCRIPT=path, PYTHONPATH=standins),
            patch.object(sys, "path", [standins, *sys.path]),
            patch("harness.rank.telemetry.gpu_uuid", lambda device: uuid),
            patch.object(Telemetry, "visited", _visited),
        ):
            asked = ("workload=[mlp_digits]", "reduction=[sum]", "iterations=2", "warm_up=1", "sample_hz=100")
            return session.measure(world, [*asked, f"results_dir={results}"])
    finally:
        sys.modules.pop("pynvml", None)


def _visited(self: Telemetry, case: Case, window: Window, *, last: bool) -> None:
    """As if the case had taken as long as it takes to sample it often enough, on however busy a machine."""
    begin, end = window
    while self.sampling is not None and self.sampling.process is not None:
        _VISITED(self, case, (begin, end), last=False)
        if min(figures["samples"] for figures in self._figures[case.case_id].values()) >= _SAMPLES:
            break
        begin = end
        time.sleep(0.05)
        end = time.monotonic()
    _VISITED(self, case, (end, end), last=last)
