"""The shipped options, made from conf/ as a run makes them."""

import json
from typing import Any

from harness.axes.workload.base import Workload
from harness.rank.assemble import make as make_option
from harness.rank.rig import Parts
from harness.schema.case import AXES, USUAL
from launch.compose import available_options, compose_config

AVAILABLE = available_options()
CONFIG = compose_config([f"{axis}=[{','.join(AVAILABLE[axis])}]" for axis in AXES], nproc_per_node=1)
"""Everything selected."""


_USUAL = {
    **{axis: option for axis, option in USUAL.items() if option},
    "sharding": "even",
    "aggregation": "all_reduce",
    "sync": "none",
    "precision": "fp64",
}


def parts_of(options: dict[str, dict[str, Any]], workload: Workload, **chosen: str) -> Parts:
    """The parts of a case: the `chosen` options of `options`, and the usual ones on the other axes."""
    return Parts(workload=workload, **{axis: options[axis][option] for axis, option in (_USUAL | chosen).items()})


def make(axis: str) -> dict[str, Any]:
    """Every option of an axis, by name."""
    nodes = {option: {k: v for k, v in node.items() if k != "_sweepable_"} for option, node in getattr(CONFIG, axis).items()}
    return {option: make_option(axis, option, json.dumps(node)) for option, node in nodes.items()}
