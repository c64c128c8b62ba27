"""A collective sweep that is cut short on all ranks, and goes on in another session of the same world."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

from harness.probes.base import Machine
from harness.probes.collectives import CollectivesProbe
from harness.rank import kept
from harness.rank.inquiry import Inquiry, machine_of
from harness.rank.kept import Kept
from harness.rank.process_group import World
from harness.rank.writer import Writer
from harness.schema.run_dir import RunDir
from tests.options import CONFIG

NAME = "collectives"
SETTING = {
    "collectives": ["all_reduce", "all_gather"],
    "least_bytes": 8,
    "most_bytes": 32,
    "iterations": 2,
    "warm_up": 1,
    "back_to_back": 2,
}
CALLS = 3
"""Timed calls of a setting, each between a barrier and the next."""


class CutShortError(BaseException):
    """Stands for the end of the process: no case and no question catches it."""


def goes_on(world: World, path: str, settings: int) -> dict[str, Any]:
    """Cut a sweep short after so many settings; go on; return what was asked and seen before and after, on rank 0."""
    run_dir = RunDir(path)
    world.control.meet()
    machine = machine_of(world, CONFIG, [])
    before = _asked(world, run_dir, _ending(machine, settings * CALLS))
    world.control.meet()
    calls = list[int]()
    after = _asked(world, run_dir, _counting(machine, calls))
    world.control.meet()
    return {"before": before, "after": after, "calls": len(calls), "subjects": [q.subject for q in _probe().questions(machine)]}


def _probe() -> CollectivesProbe:
    return CollectivesProbe(**SETTING)


def _asked(world: World, run_dir: RunDir, machine: Machine) -> dict[str, Any]:
    writer = Writer(run_dir, 0)
    inquiry = Inquiry(NAME, _probe())
    inquiry.take_up(Kept(run_dir, NAME, writer), world.control)
    taken = len(inquiry.asked)
    with patch.object(kept, "EVERY_S", 0.0):
        try:
            inquiry.run(world, machine)
        except CutShortError:
            return {"taken": taken, "seen": _rows(inquiry)}
    if world.rank == 0:
        writer.write_probe(NAME, inquiry.asked, inquiry.seen)
        writer.drop_parts(NAME)
    return {"taken": taken, "seen": _rows(inquiry), "asked": [(row.subject, row.status) for row in inquiry.asked]}


def _rows(inquiry: Inquiry) -> list[list[Any]]:
    return [[subject, rank, repr(seen)] for subject, rank, seen in inquiry.seen]


def _ending(machine: Machine, after: int) -> Machine:
    calls = list[int]()

    def time(call: Any) -> dict[str, float]:
        if len(calls) == after:
            raise CutShortError
        calls.append(1)
        return machine.time(call)

    return replace(machine, time=time)


def _counting(machine: Machine, calls: list[int]) -> Machine:
    def time(call: Any) -> dict[str, float]:
        calls.append(1)
        return machine.time(call)

    return replace(machine, time=time)
