"""`python -m launch.node RUN_DIR --node 1 --master HOST:PORT`: one host's part of a world of several hosts.

It starts torchrun, watches the ranks of its host, and ends them: when one of them is gone, when the run's launcher says so in
the run directory, and, on a leash, when whoever started it has closed its standard input.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from harness.schema.rank_state import check_proc, this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.terminal import reader_may_leave
from harness.schema.text import message_lines
from launch import torchrun
from launch.patience import Limits
from launch.signals import signals_noted
from launch.supervise import Start, run_world
from launch.task import Task, add_task, read_task
from launch.torchrun import Place


@reader_may_leave()
def main() -> int:
    """Exit status 0 when the ranks of this host have done their part."""
    arguments = parse()
    try:
        run_dir = RunDir.open(arguments.run_dir)
    except RefusedError as error:
        words = message_lines(f"node {arguments.node}: {error}; all hosts must see results_dir")
        print(f"reducebench: {words}", file=sys.stderr)
        return 2
    try:
        check_proc()
    except RefusedError as error:
        print(f"reducebench: node {arguments.node}: {message_lines(str(error))}", file=sys.stderr)
        return 2
    run_dir.ranks.note_node(arguments.node)
    if arguments.leash:
        threading.Thread(target=_end_with_input, daemon=True).start()
    return run_node(
        run_dir, Place(arguments.node, arguments.master, arguments.rendezvous), read_task(arguments, arguments.world)
    )


def run_node(run_dir: RunDir, place: Place, task: Task) -> int:
    """torchrun on this host, to its end."""
    config = run_dir.config()
    command = torchrun.command(config, run_dir, task, place)
    log = f"torchrun.{place.node}"
    limits = Limits(0, float("inf"), config.deadline_s)
    start = Start(command, torchrun.environment(config), log)
    with signals_noted() as received:
        ended = run_world([start], run_dir, task.world, lambda: None, limits, received)
    here = [status for status in run_dir.ranks.statuses() if status.machine == this_machine()]
    return int(bool(received or ended.stopped) or any(status.ended != "done" for status in here) or not here)


def parse() -> argparse.Namespace:
    """The command line of one host."""
    parser = argparse.ArgumentParser(prog="python -m launch.node", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--node", type=int, default=int(os.environ.get("SLURM_NODEID", 0)), help="this host's place, from 0")
    parser.add_argument("--master", required=True, metavar="HOST:PORT", help="the first host, as the others reach it")
    parser.add_argument("--rendezvous", default="static", choices=["static", "c10d"])
    parser.add_argument("--world", default="", help="the name by which this world is told to end")
    add_task(parser)
    parser.add_argument("--leash", action="store_true", help="end when standard input does")
    return parser.parse_args()


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin: its lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
