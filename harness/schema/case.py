"""Case: one cell of the matrix that a configuration asks for."""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """One option of every axis, and the parameters of those options."""

    workload: str
    reduction: str
    normalization: str
    sharding: str
    aggregation: str
    sync: str
    precision: str
    fault: str = "none"
    communication: str = "same"
    determinism: str = "default"
    execution: str = "eager"
    batchnorm: str = "per_rank"
    clip: str = "none"
    parameters: tuple[tuple[str, Any], ...] = ()
    """Sorted ("axis.parameter", value) pairs; values are JSON's. Nested parameters are dotted: ("workload.model.width", 32)."""

    @property
    def options(self) -> dict[str, str]:
        """Axis to option."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def case_id(self) -> str:
        """Readable, unique in a run, and equal between runs that ask for the same; `file_name` makes a file name of it.

        Options of the axes without a usual one stand by themselves, the others as `axis=option` where they are not usual.
        """
        named = [option if USUAL[axis] is None else f"{axis}={option}" for axis, option in self.options.items()]
        told = [name for name, (axis, option) in zip(named, self.options.items(), strict=True) if option != USUAL[axis]]
        digest = hashlib.sha256(json.dumps(self.parameters).encode()).hexdigest()[:8]
        return ".".join(told) + (f"-{digest}" if self.parameters else "")

    @property
    def setting(self) -> "Case":
        """The case with its reduction left open: reductions of one setting are compared in pairs."""
        kept = tuple(pair for pair in self.parameters if not pair[0].startswith("reduction."))
        return replace(self, reduction="", parameters=kept)


PROBE = "probe"
"""The group of questions that are put to the machine beside the cases; selected as the options of an axis are."""
AXES = tuple(field.name for field in fields(Case) if field.name != "parameters")
USUAL = {field.name: None if field.default is MISSING else field.default for field in fields(Case) if field.name in AXES}
"""Axis to the option that goes without saying; None where none does."""
