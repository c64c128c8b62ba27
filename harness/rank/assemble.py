"""From config nodes to objects: the only place that instantiates."""

import functools
import importlib
import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object, instantiate

from harness.probes.base import Probe
from harness.rank.rig import Parts
from harness.rank.settings import restored
from harness.schema.case import AXES, PROBE, TABLE, Case
from harness.schema.config import BenchmarkConfig
from harness.schema.context import Option
from harness.schema.parameters import check_parameters, signature_of
from harness.schema.refusal import RefusedError

assert tuple(field.name for field in fields(Parts)) == AXES, "Parts (rank/rig.py) has a field for each axis, in their order"


@functools.cache
def base_of(group: str) -> type:
    """Base class of the options of an axis, or of the probes."""
    if group == PROBE:
        return Probe
    module, _, name = TABLE[group].base.rpartition(".")
    base: type = getattr(importlib.import_module(module), name)
    return base


def assemble(cases: Iterable[Case]) -> dict[Case, Parts]:
    """The parts of every case, made before the first is measured. Raises RefusedError naming the option that cannot be made."""
    make_once = functools.cache(make)
    return {
        case: Parts(**{axis: make_once(axis, case.options[axis], json.dumps(case.nodes[axis])) for axis in AXES})
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
    if not isinstance(made, base_of(axis)):
        raise RefusedError(f"{axis}.{option}: its _target_ makes a {type(made).__name__}, expected a {base_of(axis).__name__}")
    if changed and isinstance(made, Option):
        made.changed_settings = tuple(changed)
    return made
