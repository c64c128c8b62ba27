"""Watch: what else went on while the ranks measured. It looks before the first case and after the last, never in between."""

import json
import os
from datetime import datetime, timezone
from typing import Any

from harness.rank.environment import neighbours
from harness.rank.environment.gpu import Gpu
from harness.rank.environment.host import Host
from harness.rank.process_group import World
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.run_dir import RunDir


class Watch:
    """Begun by every rank before there is anything to measure; one rank of each host looks at the host's processes."""

    def __init__(self, world: World, launch: int = 0) -> None:
        self._world, self._launch, self._host, self._gpu = world, launch, Host(), Gpu.of(world.device)
        self._began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._state_before = self._state()
        self._look = neighbours.look() if speaks_for_its_host() else None
        self._counts = self._counters()

    def note(self, run_dir: RunDir) -> None:
        """Write to environment.json what has happened since the watch began, in place of its earlier note. All ranks call."""
        said = [json.loads(text) for text in self._world.control.all_gather_text(json.dumps(self._seen()))]
        if self._world.rank == 0:
            hosts = [host for rank in said if (host := rank.pop("host"))]
            noted = {"launch": self._launch, "began": self._began, "hosts": hosts, "ranks": said}
            written = run_dir.environment()
            earlier = [note for note in written.get("conditions", []) if note.get("launch") != self._launch]
            run_dir.write_environment({**written, "conditions": [*earlier, noted]})

    def _seen(self) -> dict[str, Any]:
        states = {"before": self._state_before, "after": self._state()}
        if not self._look and not self._gpu:
            return {**states, "host": None, "device_processes": None}
        own, after = neighbours.family(_launcher()), neighbours.look()
        return {
            **states,
            "host": self._look and self._of_host(self._look, after, own),
            "device_processes": self._gpu and _others(self._gpu.processes() or [], own),
        }

    def _of_host(self, before: neighbours.Look, after: neighbours.Look, own: set[int]) -> dict[str, Any]:
        counts = {name: _difference(count, self._counts[name]) for name, count in self._counters().items()}
        return {"rank": self._world.rank, **neighbours.between(before, after, own), **counts}

    def _state(self) -> dict[str, Any]:
        """Of the CPU that this rank runs on, and of its device."""
        return {"cpu_mhz": self._host.mhz(), **(self._gpu.state() if self._gpu else {})}

    def _counters(self) -> dict[str, int | None]:
        return {"cpu_throttles": self._host.throttles(), "quota_throttles": self._host.throttled_by_quota()}


def speaks_for_its_host() -> bool:
    """One rank of a host tells of it."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _others(processes: list[dict[str, Any]], own: set[int]) -> dict[str, Any]:
    """What computes on the device and is not the run's. Where this process is not listed, pids are another namespace's."""
    seen = os.getpid() in {process["pid"] for process in processes}
    return {"own_pid_seen": seen, "others": [process for process in processes if process["pid"] not in own]}


def _launcher() -> int | None:
    pid = os.environ.get(LAUNCHER_PID, "")
    return int(pid) if pid.isdigit() else None


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before
