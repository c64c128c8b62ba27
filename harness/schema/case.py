"""Case: one cell of the matrix that a configuration asks for. Its fields are the table of axes: each is declared here, once."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple


class Baseline(Enum):
    """Step that a case is compared with. In each of them some axes have another option than the case."""

    WITHOUT_COMMUNICATION = "the same step on every rank, with nothing sent"
    ONE_RANK = "the whole batch on rank 0 alone, in the case's own precision"
    BARE_STEP = "forward and backward of each rank's mean loss"


class Reference(Enum):
    """Float64 gradient that a case's gradient is compared with. Rounding and clipping of a reference have keys of their own."""

    SHARD_WISE = "each rank's shard, or all shards summed"
    FULL_BATCH = "the whole batch in one forward"


@dataclass(frozen=True)
class Axis:
    """Facts of one axis that other modules depend on."""

    name: str
    help: str
    usual: str | None = None
    """Option that goes without saying; None where none does. An axis that is added later has one, so that case_ids stay."""
    replaced_in: frozenset[Baseline | Reference] = frozenset()
    """Baselines and references that do not depend on this axis: the option is replaced by one without effect. The others keep
    the option, and are computed once for each option."""
    in_sum: bool = False
    """True if its options change nothing but the sum over ranks: all are equal where nothing is summed (aggregation=local)."""
    always_shown: bool = False
    """True if tables name its option even where all cases have the same."""
    compared: bool = False
    """True for the one axis whose options are compared in pairs within a setting."""

    @property
    def base(self) -> str:
        """Base class of its options, by the mirror law."""
        return f"harness.axes.{self.name}.base.{self.name.capitalize()}"


class ParameterName(NamedTuple):
    """Name of an option's parameter, `axis.option.parameter`: on the command line, in a case and as a column."""

    axis: str
    option: str
    parameter: str
    """Dotted where it is nested: `model.width`."""

    @classmethod
    def parse(cls, text: str) -> "ParameterName | None":
        """Inverse of `str`; None for any other text."""
        axis, _, rest = text.partition(".")
        option, _, parameter = rest.partition(".")
        return cls(axis, option, parameter) if axis in TABLE and parameter else None

    def __str__(self) -> str:
        return ".".join(self)

    @property
    def label(self) -> str:
        """Name beside the case's option, which stands in the column of the axis."""
        return f"{self.axis}.{self.parameter}"


def _axis(help: str, *replaced_in: Baseline | Reference, usual: str | None = None, **facts: bool) -> Any:  # noqa: A002
    metadata = {"help": help, "usual": usual, "replaced_in": frozenset(replaced_in), **facts}
    return field(metadata=metadata) if usual is None else field(metadata=metadata, default=usual)


_ONE_RANK, _BARE, _FULL = Baseline.ONE_RANK, Baseline.BARE_STEP, Reference.FULL_BATCH
_REFERENCES = tuple(Reference)
_ALL = (*Baseline, *Reference)


@dataclass(frozen=True, eq=False)
class Case:
    """One option of every axis, with its node."""

    workload: str = _axis("model, loss and data", always_shown=True)
    reduction: str = _axis(
        "how one rank turns its batch into its local gradient", _BARE, *_REFERENCES, always_shown=True, compared=True
    )
    normalization: str = _axis("what the sum over ranks is divided by", _BARE, *_REFERENCES)
    sharding: str = _axis("how the global batch is cut over the ranks", _ONE_RANK, _FULL)
    aggregation: str = _axis("how local gradients become the global one", *_ALL, in_sum=True)
    sync: str = _axis("where host and device, and rank and rank, wait for each other", *_ALL)
    precision: str = _axis("dtypes of parameters and of computing", *_REFERENCES)
    fault: str = _axis("a known mistake, planted", *_ALL, usual="none")
    communication: str = _axis("dtype in which gradients travel", *_ALL, usual="same", in_sum=True)
    determinism: str = _axis("whether torch may choose kernels whose result varies", *_REFERENCES, usual="default")
    execution: str = _axis("how the model's operations come to run", *_REFERENCES, usual="eager")
    batchnorm: str = _axis("over which samples BatchNorm takes its statistics", *_ALL, usual="per_rank")
    clip: str = _axis("what limits the aggregated gradient", _BARE, *_REFERENCES, usual="none")
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """Axis to the node of its option: `_target_` and parameters, of a swept one the value in this case. Read-only."""

    @property
    def options(self) -> dict[str, str]:
        """Axis to option."""
        return {axis: getattr(self, axis) for axis in AXES}

    @cached_property
    def parameters(self) -> tuple[tuple[str, Any], ...]:
        """Sorted (name, value) pairs: ("workload.own.model.width", 32); values are JSON's."""
        return tuple(sorted((str(name), value) for axis in self.nodes for name, value in self._named(axis)))

    def _named(self, axis: str) -> Iterator[tuple[ParameterName, Any]]:
        for parameter, value in _leaves("", self.nodes.get(axis, {})):
            if parameter != "_target_":
                yield ParameterName(axis, getattr(self, axis), parameter), value

    def parameters_of(self, axis: str) -> dict[str, Any]:
        """Parameter to value, of the option on one axis."""
        return {name.parameter: value for name, value in sorted(self._named(axis))}

    @cached_property
    def _digested(self) -> str:
        """JSON of the parameters by the names that they had up to schema_version 4, `axis.parameter`.

        case_id has its digest, and must stay equal from version to version: runs are compared and resumed by it.
        """
        return json.dumps(sorted((name.label, value) for axis in self.nodes for name, value in self._named(axis)))

    @cached_property
    def case_id(self) -> str:
        """Readable, unique in a run, and equal between runs that ask for the same; `file_name` makes a file name of it.

        Options of the axes without a usual one stand by themselves, the others as `axis=option` where they are not usual.
        """
        named = [option if USUAL[axis] is None else f"{axis}={option}" for axis, option in self.options.items()]
        shown = [name for name, (axis, option) in zip(named, self.options.items(), strict=True) if option != USUAL[axis]]
        digest = hashlib.sha256(self._digested.encode()).hexdigest()[:8]
        return ".".join(shown) + (f"-{digest}" if self._digested != "[]" else "")

    @cached_property
    def setting(self) -> "Case":
        """The case without an option on the compared axis: options of one setting are compared in pairs."""
        nodes = {axis: node for axis, node in self.nodes.items() if axis != COMPARED}
        return replace(self, **{COMPARED: ""}, nodes=nodes)

    def key(self, axes: Iterable[str]) -> str:
        """Text that is equal for cases with equal options and parameters on `axes`: 1, true and "1" differ."""
        return json.dumps([[getattr(self, axis), self.parameters_of(axis)] for axis in axes])

    @cached_property
    def _identity(self) -> str:
        return json.dumps([*self.options.values(), self._digested])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Case) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)  # a text keeps its hash


def _leaves(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, dict | list) else value


PROBE = "probe"
"""The group of questions that are put to the machine beside the cases; selected as the options of an axis are."""
TABLE: Mapping[str, Axis] = MappingProxyType(
    {declared.name: Axis(declared.name, **declared.metadata) for declared in fields(Case) if declared.metadata}
)
"""Name to axis, in the order of case_id."""
AXES = tuple(TABLE)
USUAL = {name: axis.usual for name, axis in TABLE.items()}
"""Axis to the option that goes without saying; None where none does."""
(COMPARED,) = (name for name, axis in TABLE.items() if axis.compared)


def kept_in(step: Baseline | Reference) -> tuple[str, ...]:
    """Axes on which a baseline, or a reference, has the case's own option: all that it depends on."""
    return tuple(name for name, axis in TABLE.items() if step not in axis.replaced_in)
