"""A world that is not fit to be measured, in several ways."""

import json
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import torch
from torch.distributed import PrefixStore, Store

from harness.probes import crafted
from harness.rank import preflight
from harness.rank.environment.versions import versions
from harness.rank.gathering import UnreachableError, gather
from harness.rank.process_group import BrokenGroupError, World, open_store
from harness.schema.refusal import RefusedError


def refusals(world: World) -> dict[str, list[str]]:
    """Return {planted harm: the refusal on each rank}."""
    store, rank, _ = open_store()
    told = {
        "nothing": said(lambda: (alike(world), preflight.check_sum(world))),
        "versions": said(lambda: other_version(world)),
        "commit": said(lambda: other_commit(world)),
        "shared": said(lambda: shared_gpu(world)),
        "sum": said(lambda: wrong_sum(world)),
        "absent": said(lambda: absent(store, rank)),
    }
    world.rebuild_measured()  # a rank that fails leaves the measured group
    everyone = [json.loads(text) for text in world.control.all_gather_text(json.dumps(told))]
    return {what: [each[what] for each in everyone] for what in told}


def said(check: Callable[[], object]) -> str:
    try:
        check()
    except (RefusedError, UnreachableError) as error:
        return str(error)
    return ""


def alike(world: World, backend: str = "gloo") -> None:
    preflight.check_alike(world.control, world.device, backend)


def other_version(world: World) -> None:
    if world.rank == 1:
        preflight.versions = lambda: {**versions(), "torch": "1.13.0"}
    try:
        alike(world)
    finally:
        preflight.versions = versions


def other_commit(world: World) -> None:
    """Each rank speaks for a host of its own."""
    kept = preflight.checkout, preflight.speaks_for_its_host
    preflight.checkout = lambda: (f"{world.rank:040x}", bool(world.rank))
    preflight.speaks_for_its_host = lambda: True
    try:
        alike(world)
    finally:
        preflight.checkout, preflight.speaks_for_its_host = kept


def shared_gpu(world: World) -> None:
    """No GPU is there: what NVML would tell of one."""
    kept = preflight.gpu_uuid
    preflight.gpu_uuid = lambda device: "GPU-1"
    try:
        alike(world, "nccl")
    finally:
        preflight.gpu_uuid = kept


def wrong_sum(world: World) -> None:
    kept = crafted.contribution
    if world.rank == 1:
        crafted.contribution = lambda rank, size, seed: lambda places: torch.zeros_like(places)
    try:
        preflight.check_sum(world)
    finally:
        crafted.contribution = kept


def absent(store: Store, rank: int) -> None:
    """A third rank is waited for, and never comes."""
    gather(PrefixStore("absent", store), rank, 3, 3.0)


def lost_device(world: World) -> list[list[str]]:
    """Rebuild the measured group where rank 1's device fails every call; return what each rank says and does then."""
    own = replace(world)
    with patch("harness.rank.process_group._works", lambda device: world.rank != 1):
        own.rebuild_measured()
    told = [said_broken(own.check_default), "kept" if own.measured is world.measured else "another group"]
    world.rebuild_measured()
    return [json.loads(text) for text in world.control.all_gather_text(json.dumps(told))]


def said_broken(check: Callable[[], object]) -> str:
    try:
        check()
    except BrokenGroupError as error:
        return str(error)
    return ""
