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
from typing import Any

import torch

from harness.rank.process_group import World, open_store
from harness.schema.case import AXES
from tests.options import CONFIG, make


def main(address: str) -> None:
    faulthandler.register(signal.SIGUSR1)
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
            _freeze()
            _send(lines, _answer(world, request["function"], request["arguments"]))
    world.close()


def _import_options() -> None:
    """Import what cases need: all options, and what DistributedDataParallel imports at its first use."""
    for axis in AXES:
        make(axis)
    importlib.import_module("torch._dynamo")


def _freeze() -> None:
    """Keep what lives now out of later collections: a case collects garbage, which takes longer than most cases themselves."""
    gc.collect()
    gc.freeze()


def _answer(world: World, function: str, arguments: list[Any]) -> dict[str, Any]:
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(world, *arguments)
        return {"result": json.loads(json.dumps(result)) if world.rank == 0 else None}
    except Exception:
        return {"failed": traceback.format_exc()}


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
