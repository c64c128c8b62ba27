"""Files of the run directory that NCCL and torch write by themselves: NCCL's log, the flight recorder's dump.

Both read environment variables when the first NCCL communicator is made. A variable that the user has set keeps its value.
"""

import faulthandler
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch._C import _distributed_c10d as c10d

from harness.schema.run_dir import RunDir
from harness.schema.whole_files import check_in_place, open_in_place, open_new

NCCL_LOG = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,ENV,TUNING"}
"""Contents of NCCL's log: topology and transports, variables that it has read, and its choice for each collective."""
_DUMP = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""Two names of one variable, the prefix of the dump; an older torch knows only the second."""
_SETTINGS = {
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): "2000",  # torch's default where it records by default
    ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
}
_DUMP_S = 5.0
"""Until a dump that does not end is given up: the rank that makes it is about to end.

Torch's call holds the interpreter lock. If it does not return, faulthandler's timer, which needs no lock, ends the rank after
twice that time with exit status 1: the status that the rank would have had, and its last words are in its file already.
"""
_STDERR = 2
_ours: dict[str, str] = {}


def direct_files(run_dir: RunDir, rank: int, launch: int, *, log: bool) -> None:
    """Set the variables of a rank of NCCL before its first communicator. `log`: those of NCCL's log, too.

    Raises RefusedError where a link is in the place of a file.
    """
    _forget()
    dump = run_dir.ranks.flight_dump(launch, len(run_dir.failures()))
    check_in_place(run_dir.ranks.path / f"{dump.name}{rank}", run_dir.path)
    for names, value in ({_DUMP: str(dump)} | _SETTINGS).items():
        _offer(names, value)
    if log:
        _direct_log(run_dir, launch)


def _direct_log(run_dir: RunDir, launch: int) -> None:
    for name, value in NCCL_LOG.items():
        _offer((name,), value)
    if "NCCL_DEBUG_FILE" not in os.environ:
        # NCCL opens the file by its name, and would follow a link
        os.close(open_in_place(run_dir.ranks.own_nccl_log(launch), run_dir.path, os.O_WRONLY | os.O_CREAT))
        _offer(("NCCL_DEBUG_FILE",), str(run_dir.ranks.nccl_log(launch)))


def _offer(names: Sequence[str], value: str) -> None:
    """Set variables that mean the same, unless the user has set one of them."""
    if not any(name in os.environ for name in names):
        own = dict.fromkeys(names, value)
        os.environ.update(own)
        _ours.update(own)


def _forget() -> None:
    """Remove what an earlier run in this process has set."""
    for name, value in _ours.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    _ours.clear()


def users(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables without those that were set here: they name files of one world, and differ between equal runs."""
    return {name: value for name, value in variables.items() if _ours.get(name) != value}


def dump_flight(run_dir: RunDir, rank: int) -> None:
    """Write what the flight recorder holds, as torch's watchdog would: this rank ends before the watchdog looks."""
    prefix = _ours.get(_DUMP[0])
    if prefix is None:
        return
    thread = threading.Thread(target=_dump, args=(run_dir, f"{Path(prefix).name}{rank}"), daemon=True)
    faulthandler.dump_traceback_later(2 * _DUMP_S, exit=True, file=_STDERR)
    try:
        thread.start()
        thread.join(_DUMP_S)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _dump(run_dir: RunDir, name: str) -> None:
    recorded = getattr(c10d, "_dump_nccl_trace", None) or getattr(c10d, "_dump_fr_trace", None)
    if recorded is None:
        return
    data = recorded()  # before the file is made: an empty dump would be taken for one without collectives
    with open_new(run_dir.ranks.path / name, run_dir.path) as file:
        file.write(data)
