"""Starts the ranks, watches them, and ends them: no process outlives the launcher's wait."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from harness.schema.run_dir import RunDir

POLL_S = 0.2
PATIENCE_S = 5.0
"""From SIGTERM to SIGKILL."""
TROUBLE_S = 10.0
"""How long torchrun may take to end the other ranks once one is gone."""

Watch = Callable[[], None]
"""Called again and again while the ranks work."""


def run_ranks(command: Sequence[str], environment: dict[str, str], run_dir: RunDir, watch: Watch) -> str:
    """Run the command to its end, and end every process of it. Returns the name of the signal that cut it short, or ""."""
    with _signals() as received, run_dir.log("torchrun").open("ab") as log:
        # A session of its own: Ctrl-C reaches the launcher alone, which ends the ranks in order.
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(process, run_dir, watch, received)
        finally:
            end(process, run_dir)
    return received[0] if received else ""


@contextmanager
def _signals() -> Iterator[list[str]]:
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(process: "subprocess.Popen[bytes]", run_dir: RunDir, watch: Watch, received: list[str]) -> None:
    trouble_since = None
    while process.poll() is None and not received:
        watch()
        if not _in_trouble(run_dir):
            trouble_since = None
        elif trouble_since is None:
            trouble_since = time.monotonic()
        elif time.monotonic() - trouble_since > TROUBLE_S:
            return
        time.sleep(POLL_S)


def _in_trouble(run_dir: RunDir) -> bool:
    """A rank has ended otherwise than well, or is gone without a word."""
    return any(
        status.ended not in ("", "done") or (not status.ended and not _is_rank(status.pid, run_dir))
        for status in run_dir.rank_statuses()
    )


def end(process: "subprocess.Popen[bytes]", run_dir: RunDir) -> None:
    """End torchrun and every rank: SIGCONT and SIGTERM, then SIGKILL after PATIENCE_S."""
    for number in (signal.SIGCONT, signal.SIGTERM):
        _signal(process, run_dir, number)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (process.poll() is None or _ranks(run_dir)):
        time.sleep(POLL_S / 4)
    _signal(process, run_dir, signal.SIGKILL)
    process.wait()


def _signal(process: "subprocess.Popen[bytes]", run_dir: RunDir, number: signal.Signals) -> None:
    ranks = _ranks(run_dir)
    for pid in [*ranks, *([process.pid] if process.poll() is None else [])]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _ranks(run_dir: RunDir) -> set[int]:
    """Ranks that live, whether they have reported yet or not, and whoever is their parent now."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_rank(int(entry.name), run_dir)}


def _is_rank(pid: int, run_dir: RunDir) -> bool:
    """Whether the process is a rank of this run, and no later one that got its pid."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"harness.rank" in arguments and str(run_dir.path).encode() in arguments
