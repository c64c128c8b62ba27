"""One worker process: `python -m harness.rank RUN_DIR`, started by torchrun."""

import argparse
import atexit
import contextlib
import faulthandler
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.rank.guard import Guard
from harness.schema.rank_state import LAUNCHER_PID, RankState, RankStatus, check_proc, this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.whole_files import open_in_place

if TYPE_CHECKING:
    from torch.distributed import Store

    from harness.rank.session import ShowProgress

REFUSED = 2


def main() -> int:
    """Exit status 0 once every outcome is written, 2 when the configuration is refused, 1 when the rank could not go on."""
    parser = argparse.ArgumentParser(prog="python -m harness.rank", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--launch", type=int, default=0, help="which of the run's launches this is, from 0")
    parser.add_argument("--retry", action="store_true", help="do what failed again")
    parser.add_argument("--accept", action="store_true", help="go on also where the environment has changed")
    arguments = parser.parse_args()
    run_dir = RunDir.open(arguments.run_dir)
    rank = int(os.environ["RANK"])
    redirect_output(run_dir.ranks.log(rank))
    state, guard = report_in(run_dir, rank)

    state.enter("import")
    gc.disable()  # importing makes no garbage, and looking for it takes a tenth of the time
    from harness.rank.process_group import open_store  # torch: not before the rank has reported and is guarded

    return work(run_dir, state, guard, partial(open_store, run_dir.config().rendezvous_s), arguments=arguments)


def redirect_output(log: Path) -> None:
    """Send what this process prints, in Python or below it, to its log, RUN/ranks/<rank>.log."""
    descriptor = open_in_place(log, log.parent.parent, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    faulthandler.enable()  # where a crash below Python came from stands in the log too


def report_in(run_dir: RunDir, rank: int, last_act: Callable[[], None] = lambda: None) -> tuple[RankState, Guard]:
    """Say that the rank is there, and guard it from being left alone; `last_act` comes before an end from outside."""
    status = RankStatus(rank=rank, pid=os.getpid(), host=socket.gethostname(), machine=this_machine())
    state = RankState(run_dir.ranks.state(rank), status)
    state.enter("start")
    try:
        check_proc()
    except RefusedError as error:
        state.update(ended="refused", words=str(error))
        last_act()
        sys.exit(REFUSED)

    def leave(why: str, **evidence: object) -> None:
        try:
            state.update(ended=why, **evidence)
            if why in ("lost", "waited") or guard.overdue:  # another rank may have ended the world for the same collective
                guard.dump()
            last_act()
        finally:
            os._exit(REFUSED if state.status.ended == "refused" else 1)

    guard = Guard(leave, state)
    guard.start(int(os.environ.get(LAUNCHER_PID, 0)))
    return state, guard


def work(
    run_dir: RunDir,
    state: RankState,
    guard: Guard,
    join: "Callable[[], tuple[Store, int, int]]",
    progress: "ShowProgress | None" = None,
    arguments: argparse.Namespace | None = None,
) -> int:
    """The session, and the rank's last words when it does not go well. `join` finds the store that all ranks share."""
    from harness.rank.session import Order, run_session, silent

    gc.freeze()  # keeps imported objects out of collections: saves 0.15 s in the first one, and as much in the first case
    gc.enable()
    try:
        _prepare_process(run_dir)
        order = Order(arguments.launch, arguments.retry, arguments.accept) if arguments else Order()
        run_session(run_dir, join, state, guard, progress or silent, order)
    except RefusedError as error:
        state.update(ended="refused", words=str(error))
        return REFUSED
    except Exception as error:  # the last words of a rank that cannot go on: whatever it was, it is told, then the rank ends
        with contextlib.suppress(OSError):  # the log may be on the disk that is full
            traceback.print_exc()
        state.update(ended="unwritable" if _of_the_disk(error) else "error", words=f"{type(error).__name__}: {error}")
        return 1
    state.update(ended="done")
    return 0


def _of_the_disk(error: Exception) -> bool:
    from harness.rank.agreement import FULL_DISK

    return isinstance(error, OSError) and error.errno in FULL_DISK


def _prepare_process(run_dir: RunDir) -> None:
    """Environment variables of the configuration, and the folder of --config-dir, where the user's own classes stand."""
    config = run_dir.config()
    os.environ.update(config.env)
    if config.config_dir:
        sys.path.insert(0, config.config_dir)


def leave(status: int) -> NoReturn:
    """End the process without its teardown: all is written, and a library that crashes on its way out spoils no run."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
