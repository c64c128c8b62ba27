"""From config nodes to objects: the only place that instantiates."""

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate

from harness.axes.aggregation.base import Aggregation
from harness.axes.batchnorm.base import Batchnorm
from harness.axes.clip.base import Clip
from harness.axes.communication.base import Communication
from harness.axes.determinism.base import Determinism
from harness.axes.execution.base import Execution
from harness.axes.fault.base import Fault
from harness.axes.normalization.base import Normalization
from harness.axes.precision.base import Precision
from harness.axes.reduction.base import Reduction
from harness.axes.sharding.base import Sharding
from harness.axes.sync.base import Sync
from harness.axes.workload.base import Workload
from harness.probes.base import Probe
from harness.rank.settings import restored
from harness.schema.case import AXES, PROBE, Case
from harness.schema.config import BenchmarkConfig
from harness.schema.context import Option
from harness.schema.matrix import option_node
from harness.schema.parameters import check_parameters, signature_of
from harness.schema.refusal import RefusedError

_BASES: dict[str, type] = {
    "workload": Workload,
    "reduction": Reduction,
    "normalization": Normalization,
    "sharding": Sharding,
    "aggregation": Aggregation,
    "sync": Sync,
    "precision": Precision,
    "fault": Fault,
    "communication": Communication,
    "determinism": Determinism,
    "execution": Execution,
    "batchnorm": Batchnorm,
    "clip": Clip,
    PROBE: Probe,
}


@dataclass(frozen=True)
class Parts:
    """The objects of a case, one an axis. Cases that ask for the same option share its object."""

    workload: Workload
    reduction: Reduction
    normalization: Normalization
    sharding: Sharding
    aggregation: Aggregation
    sync: Sync
    precision: Precision
    fault: Fault
    communication: Communication
    determinism: Determinism
    execution: Execution
    batchnorm: Batchnorm
    clip: Clip


def assemble(config: BenchmarkConfig, cases: Iterable[Case]) -> dict[Case, Parts]:
    """The parts of every case, made before the first is measured. Raises RefusedError naming the option that cannot be made."""
    make_once = functools.cache(make)
    return {
        case: Parts(**{axis: make_once(axis, case.options[axis], json.dumps(option_node(config, case, axis))) for axis in AXES})
        for case in cases
    }


def assemble_probes(config: BenchmarkConfig) -> dict[str, Probe]:
    """The selected probes, by name. Raises RefusedError naming the one that cannot be made."""
    return {option: make(PROBE, option, json.dumps(node)) for option, node in config.probe.items()}


def _checked(key: str, node: dict[str, Any]) -> dict[str, Any]:
    """Check the node against the annotations of its class. The launcher has checked only those that the source files show."""
    try:
        maker = get_object(str(node.get("_target_")))
    except (ImportError, ValueError):
        return node  # instantiate says what it cannot find
    signature = signature_of(maker) if callable(maker) else None
    return check_parameters(key, node, signature) if signature else node


def make(axis: str, option: str, node: str) -> Any:
    """The object of an option; `node` is its config as JSON. Raises RefusedError."""
    changed = list[str]()
    try:
        with restored(changed):
            made = instantiate(_checked(f"{axis}.{option}", json.loads(node)), _convert_="all")
    except (HydraException, ValueError) as error:
        raise RefusedError(f"{axis}.{option}: {error.__cause__ or error}") from error
    if not isinstance(made, _BASES[axis]):
        raise RefusedError(f"{axis}.{option}: its _target_ makes a {type(made).__name__}, expected a {_BASES[axis].__name__}")
    if changed and isinstance(made, Option):
        made.changed_settings = tuple(changed)
    return made
