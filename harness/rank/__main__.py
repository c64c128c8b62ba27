"""One worker process: `python -m harness.rank RUN_DIR`, started by torchrun."""

import argparse
import atexit
import faulthandler
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.rank.guard import watch
from harness.schema.rank_state import LAUNCHER_PID, RankState, RankStatus
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir

if TYPE_CHECKING:
    from torch.distributed import Store

    from harness.rank.session import Progress

REFUSED = 2


def main() -> int:
    """Exit status 0 once every outcome is written, 2 when the configuration is refused, 1 when the rank could not go on."""
    parser = argparse.ArgumentParser(prog="python -m harness.rank", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--launch", type=int, default=0, help="which of the run's launches this is, from 0")
    arguments = parser.parse_args()
    run_dir = RunDir.open(arguments.run_dir)
    rank = int(os.environ["RANK"])
    redirect_output(run_dir.log(rank))
    state = open_state(run_dir, rank)

    state.enter("import")
    gc.disable()  # importing makes no garbage, and looking for it takes a tenth of the time
    from harness.rank.process_group import open_store  # torch: not before the rank has reported and is guarded

    return work(run_dir, state, *open_store(), launch=arguments.launch)


def redirect_output(log: Path) -> None:
    """Send what this process prints, in Python or below it, to its log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    faulthandler.enable()  # where a crash below Python came from stands in the log too


def open_state(run_dir: RunDir, rank: int, last_act: Callable[[], None] = lambda: None) -> RankState:
    """Report that the rank is there, and guard it from being left alone; `last_act` comes before an end from outside."""
    state = RankState(run_dir.rank_state(rank), RankStatus(rank=rank, pid=os.getpid(), host=socket.gethostname()))
    state.enter("start")

    def leave(why: str) -> None:
        state.update(ended=why)
        last_act()
        os._exit(1)

    watch(leave, int(os.environ.get(LAUNCHER_PID, 0)))
    return state


def work(
    run_dir: RunDir,
    state: RankState,
    store: "Store",
    rank: int,
    size: int,
    progress: "Progress | None" = None,
    launch: int = 0,
) -> int:
    """The session, and the rank's last words when it does not go well."""
    from harness.rank.session import run_session, silent

    gc.enable()
    try:
        _prepare_process(run_dir)
        run_session(run_dir, store, rank, size, state, progress or silent, launch)
    except RefusedError as error:
        state.update(ended="refused", words=str(error))
        return REFUSED
    except Exception as error:  # the last words of a rank that cannot go on: whatever it was, it is told, then the rank ends
        traceback.print_exc()
        state.update(ended="error", words=f"{type(error).__name__}: {error}")
        return 1
    state.update(ended="done")
    return 0


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
