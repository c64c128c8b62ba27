"""One rank of a world that tests share: call one function after another, as the pool asks.

    torchrun --nproc-per-node=W -m tests.worlds.serve SOCKET

Requests and answers are lines of JSON. A rank answers with its traceback where the function raises.
"""

import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.rank.process_group import World, open_store
from harness.schema.case import AXES
from tests.options import CONFIG, make


def main(address: str) -> None:
    log = os.dup(2)  # a run sends descriptor 2 to a log of its own
    faulthandler.register(signal.SIGUSR1, file=log, all_threads=False)
    faulthandler.enable(file=log)  # a rank that crashes says where
    torch.set_num_threads(1)
    world = World.open(CONFIG, *open_store())
    _import_options()
    with socket.socket(socket.AF_UNIX) as pool:
        pool.connect(address)
        lines = pool.makefile("rw")
        _send(lines, {"rank": world.rank, "pid": os.getpid()})
        for line in lines:
            request = json.loads(line)
            _context(request["test"])
            _send(lines, _answer(world, request["function"], request["arguments"]))
    world.close()


def _import_options() -> None:
    """Import what calls need, and exclude it from collections: every case collects garbage, which would take longer than it."""
    for axis in AXES:
        make(axis)
    for module in ("torch._dynamo", "tests.worlds.session"):  # DistributedDataParallel imports the first at its first use
        importlib.import_module(module)
    gc.collect()
    gc.freeze()


def _answer(world: World, function: str, arguments: list[Any]) -> dict[str, Any]:
    module, _, name = function.partition(":")
    before = _settings()
    try:
        result = getattr(importlib.import_module(module), name)(world, *arguments)
        assert _settings() == before, f"{function} leaves other settings of torch than it found"
        return {"result": json.loads(json.dumps(result)) if world.rank == 0 else None}
    except Exception:
        return {"failed": traceback.format_exc()}


def _settings() -> tuple[object, ...]:
    """Return what a call must leave as it was, so that none depends on an earlier one."""
    return torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()


@contextmanager
def noted(cell: str) -> Iterator[None]:
    """Name a cell of a matrix in the traceback of an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in cell {cell}")
        raise


def _send(lines: Any, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message) + "\n")
    lines.flush()


def _context(test: str) -> None:
    """Name the test to coverage, where it measures this process."""
    if coverage := sys.modules.get("coverage"):
        current = coverage.Coverage.current()
        if current:
            current.switch_context(test)


if __name__ == "__main__":
    main(sys.argv[1])
