"""A run that something happens to: started, struck when a rank is in a phase, ended or not, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from harness.report.frame import load_run
from harness.schema.rank_state import RankStatus
from harness.schema.run_dir import HELD, RunDir
from tests.running import BEGUN_S, ENVIRONMENT, HANG_S, ORPHANS_S, ROOT, processes_of, wait_until

DEADLINE_S = 5.0
"""Deadline of the runs of `make chaos`. A rank that is descheduled for so long is called dead: tests take a longer one."""
GRACE_S = 15.0
"""Seconds beyond the deadline within which a run must end or go on; only `make chaos` judges by it."""
GONE_S = 10.0
"""Seconds after that within which its processes must be gone; only `make chaos` judges by it."""

MATRIX = (
    *("--config-dir", str(Path(__file__).parent / "planted")),
    *("workload=[sabotaged]", "aggregation=[sabotaged]", "reduction=[sum,mean]", "sharding=[even,uneven]"),
    *("probe=[sabotaged]", "iterations=4", "global_batch_size=32"),
    "name=chaos",
)
"""Four cases, the third of which is the first of those that are held against another reference; and a probe."""
_RENDEZVOUS_S = 60.0
DRIFT = ("drift.steps=2",)
"""Makes a phase more, and takes its time."""
TRACE = ("profile=true",)
"""Another one."""


@dataclass
class Chaotic:
    """One launch of MATRIX. What it is told to do lies in `plan`."""

    folder: Path
    overrides: Sequence[str] = ()
    process: "subprocess.Popen[str]" = field(init=False)
    victim: int = 1
    """The rank that is struck."""
    deadline_s: float = DEADLINE_S
    hasty: bool = False
    """True if the rendezvous times out at the deadline, for a rank that never joins."""
    struck: float = 0.0
    """When the fault came."""
    standing: dict[str, tuple[int, int]] = field(default_factory=dict)
    """What was finished by then, as `finished` tells it."""
    cut: Callable[[], None] = field(default=lambda: None)
    """Takes the cable between two hosts off, where there are two."""

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def run_dir(self) -> RunDir:
        return RunDir(next(self.results.glob("chaos/2*")))

    @property
    def is_there(self) -> bool:
        """False where the run was refused before anything was measured: it leaves no directory."""
        return any(self.results.glob("chaos/*"))

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch", *MATRIX, *self._limits, f"results_dir={self.results}", *self.overrides],
            **_piped(self.environment),
        )

    @property
    def _limits(self) -> list[str]:
        rendezvous_s = self.deadline_s if self.hasty else _RENDEZVOUS_S
        return [f"deadline_s={self.deadline_s}", f"rendezvous_s={rendezvous_s}"]

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "REDUCEBENCH_CHAOS": str(self.plan)}

    def plant(self, deed: str, phase: str, done: int = 1, case: str = "") -> str:
        """Have the victim harm itself in a phase, once so many cases are finished, in any or in that one; returns in which."""
        assert self.wait(lambda: bool(list(self.results.glob("chaos/2*/ranks")))), "no run directory"
        plan = {
            "deed": deed,
            "phase": phase,
            "done": done,
            "case": case,
            "rank": self.victim,
            "states": str(self.run_dir.path / "ranks"),
        }
        part = self.plan.with_suffix(".part")
        part.write_text(json.dumps(plan))
        part.replace(self.plan)
        assert self.wait(lambda: not self.plan.exists()), f"rank {self.victim} never came to phase {phase}"
        self.struck = time.monotonic()
        case = self.plan.with_suffix(".case").read_text()
        self.standing = self._files(case)
        return case

    def reach(self, phase: str) -> RankStatus:
        """Wait until the victim is in a phase, looking closely."""
        assert self.wait(lambda: bool(list(self.results.glob("chaos/2*/ranks/*.state")))), "no rank has reported"
        deadline = time.monotonic() + BEGUN_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for status in self.run_dir.ranks.statuses():
                if status.rank == self.victim and status.phase == phase:
                    return status
        raise AssertionError(f"rank {self.victim} never came to phase {phase}")

    def strike(self, deed: Callable[[], None]) -> None:
        """Do it, and look at the clock."""
        self.struck, self.standing = time.monotonic(), self._files()
        deed()

    def strike_in(self, phase: str, deed: Callable[[], None], *, let_go: bool = False) -> None:
        """Do it while the victim is held in a phase, once a case is finished; let_go: it goes on, to feel what was done."""
        self.plant("hold", phase)
        self.strike(deed)
        if let_go:
            self.plan.with_suffix(".struck").touch()

    def wait(self, happened: Callable[[], bool]) -> bool:
        """Until it has happened, or the launcher has ended."""
        return wait_until(lambda: happened() or self.process.poll() is not None, BEGUN_S) and happened()

    def go_on(self) -> float:
        """Seconds from the strike until the victim has left the case that failed."""
        failed = self.plan.with_suffix(".case").read_text()
        self.wait(lambda: all(status.case != failed for status in self.run_dir.ranks.statuses() if status.rank == self.victim))
        return time.monotonic() - self.struck

    def end(self) -> tuple[int, str, float]:
        """Exit status, output, and seconds from the strike; the launcher is killed where it takes far too long."""
        try:
            output, _ = self.process.communicate(timeout=BEGUN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            output, _ = self.process.communicate()
        return self.process.returncode, output, time.monotonic() - self.struck

    def orphans(self) -> tuple[int, float]:
        """Processes of the run that are left ORPHANS_S after its end, and the seconds until there were no more."""
        began = time.monotonic()
        wait_until(lambda: not self._living(), ORPHANS_S)
        return len(self._living()), time.monotonic() - began

    def _living(self) -> dict[int, str]:
        return processes_of(self.results)

    def kill(self) -> None:
        for pid in self._living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()

    def close(self) -> None:
        """Leave no process and no pipe, so that a trial that broke off does not trouble the next."""
        self.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def resume(self, *overrides: str) -> "subprocess.CompletedProcess[str]":
        """Go on with it, to its end."""
        command = [sys.executable, "-m", "launch", f"resume={self.run_dir.path}", *overrides]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=HANG_S, check=False
        )

    def finished(self) -> dict[str, tuple[int, int]]:
        """All files of finished cases, in every table: inode and time of change."""
        return stamps(self.run_dir, set(load_run(self.run_dir.path).cases.query("status != 'failed'").case_id))

    def _files(self, struck: str = "") -> dict[str, tuple[int, int]]:
        """As `finished`, of what has its row, by the names of files alone; the case that was struck may have failed by now."""
        return stamps(self.run_dir, self.run_dir.listed() - {struck}) if list(self.results.glob("chaos/2*")) else {}

    def discrepancies(self) -> pd.DataFrame:
        """All of them, sorted."""
        return sorted_rows(self.run_dir.path)


def stamps(run_dir: RunDir, cases: set[str]) -> dict[str, tuple[int, int]]:
    """Inode and time of change of all that these cases left."""
    files = [run_dir.case_file(table, case) for table in HELD["cases"] for case in cases]
    found = {file: file.stat() for file in files if file.is_file()}
    return {str(file.relative_to(run_dir.path)): (stat.st_ino, stat.st_mtime_ns) for file, stat in found.items()}


def sorted_rows(path: Path) -> pd.DataFrame:
    """The discrepancies of a run in an order of their own."""
    keys = ["case_id", "launch", "against", "rank", "parameter"]
    rows = load_run(path).every("discrepancies")
    return rows.astype({"case_id": str}).sort_values(keys, ignore_index=True)


def _piped(environment: dict[str, str]) -> dict[str, object]:
    return {
        "cwd": ROOT,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "start_new_session": True,
    }
