"""One mutant: its own copy of the tree, and pytest in it until the first failure."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants.apply import MatchError, copy_tree, environment, find
from tests.mutants.measure import PYTEST, Measured, events
from tests.mutants.planted import Mutant

_HANG_S = 120.0
"""A test hangs after this time plus `_SLOWER` times its cost in the clean run."""
_SLOWER = 5.0
_GRACE_S = 30.0
"""Time for pytest to tear fixtures down after an interrupt."""


@dataclass(frozen=True)
class Outcome:
    """Result of the tests of one mutant."""

    mutant: str
    verdict: str
    """`caught`, `survived` or `error`."""
    note: str
    """The failing test in backticks, or a reason."""
    seconds: float = 0.0
    message: str = ""
    """First line of the failure."""


def attempt(mutant: Mutant, measured: Measured, limit_s: float, *, rest: bool) -> Outcome:
    """Run the tests that execute the mutant's function, then, with `rest`, all others."""
    begun = time.monotonic()
    try:
        tests = measured.executed(mutant)
        if rest:
            tests += measured.in_order(set(measured.usable).difference(tests))
        verdict, note, message = _run(mutant, tests, measured, limit_s) if tests else ("survived", "no test executes it", "")
    except (MatchError, OSError, subprocess.SubprocessError, AssertionError) as error:
        verdict, note, message = "error", f"{type(error).__name__}", str(error)
    return Outcome(mutant.name, verdict, note, time.monotonic() - begun, message)


def _run(mutant: Mutant, tests: list[str], measured: Measured, limit_s: float) -> tuple[str, str, str]:
    with TemporaryDirectory(prefix="m", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        tree, records, plan = folder / "tree", folder / "records.jsonl", folder / "plan.json"
        temporary = folder / "t"  # a short name: the path of a socket has at most 107 bytes
        tree.mkdir()
        temporary.mkdir()
        copy_tree(tree)
        match = find(mutant, tree)
        (tree / match.function.path).write_text(match.source)
        plan.write_text(json.dumps({"order": tests, "known": list(measured.tests), "limit_s": limit_s}))
        variables = environment(tree) | {
            "TMPDIR": str(temporary),
            "MUTANTS_RECORDS": str(records),
            "MUTANTS_PLAN": str(plan),
        }
        files = sorted({test.partition("::")[0] for test in tests if (tree / test.partition("::")[0]).exists()})
        command = [*PYTEST, "-x", "-p", "no:xdist", *files]
        try:
            with (folder / "log").open("w") as log:
                process = subprocess.Popen(command, cwd=tree, env=variables, stdout=log, stderr=subprocess.STDOUT)
                status = _wait(process, records, {test: measured.cost_s(test) for test in tests})
            return _judge(status, records, len(tests), (folder / "log").read_text())
        finally:
            _end_processes(folder)


def _wait(process: "subprocess.Popen[bytes]", records: Path, costs: Mapping[str, float]) -> int | None:
    """Return pytest's exit status; None where a test hangs, after ending pytest."""
    begun = time.time()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.5)
        test, since = _running(records) or ("", begun)
        if time.time() - since > _HANG_S + _SLOWER * costs.get(test, 0.0):
            break
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    process.kill()
    process.wait()
    return None


def _running(records: Path) -> tuple[str, float] | None:
    begun = [(event["begins"], event["at"]) for event in events(records) if "begins" in event]
    return begun[-1] if begun else None


def _judge(status: int | None, records: Path, count: int, log: str) -> tuple[str, str, str]:
    seen = events(records)
    ran = sum("begins" in event for event in seen)
    running = _running(records)
    failures = [event for event in seen if event.get("failed")]
    if status is None:
        return "caught", f"hang in `{running[0] if running else 'collection'}`", ""
    if failures:
        return "caught", f"`{failures[0]['test']}`", failures[0]["message"]
    if status == 0:
        return "survived", f"{ran} tests pass", ""
    limit = next((event["limit"] for event in seen if "limit" in event), None)
    if limit is not None:
        return "survived", f"{ran} of {count} tests pass in {limit:.0f} s", ""
    return "error", f"pytest ended with status {status}", log[-500:]


def _end_processes(folder: Path) -> None:
    """Kill the processes that a mutant has left: their working directory, an argument or a variable names its folder."""
    mark = f"{folder}/"
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (
                f"{(entry / 'cwd').readlink()}/".startswith(mark)
                or mark.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            ):
                os.kill(int(entry.name), signal.SIGKILL)
