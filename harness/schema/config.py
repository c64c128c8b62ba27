"""BenchmarkConfig: the typed trunk of the configuration. Its leaves, the options of each axis, stay open."""

import copy
import functools
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.schema.arguments import ARGUMENTS
from harness.schema.case import AXES, PROBE
from harness.schema.conversion import to_dataclass
from harness.schema.keys import Affects, config_key, declared, keys_of, option_group, values_of
from harness.schema.launcher import Launcher, to_launcher
from harness.schema.reading import read_bytes, reason
from harness.schema.refusal import RefusedError
from harness.schema.sweep import check_sweeps, count_variants
from harness.schema.text import interpolations, literal

DEVICES = ("auto", "cpu", "cuda")
BACKENDS = ("auto", "gloo", "nccl")
OPTIMIZERS = ("sgd", "adam")
ORDERS = ("matrix", "shuffled", "interleaved")
STORIES = ("", "reduction_modes", "gradient_sums", "unequal_derivatives")
RENDEZVOUS_S = 120.0
_MOST_RANKS = {"nproc_per_node": 1024, "nnodes": 2**16}
_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)


@declared
@dataclass
class TorchrunConfig:
    """How many ranks, for every launcher."""

    nproc_per_node: int | None = config_key(
        None,
        affects="results",
        help="Ranks a node; null: the number of visible CUDA devices, or 2 without any.",
    )
    nnodes: int = config_key(1, affects="results", help="Number of nodes.")

    def __post_init__(self) -> None:
        for key, most in _MOST_RANKS.items():
            value = getattr(self, key)
            if value is not None and not 1 <= value <= most:
                problem = "less than 1" if value < 1 else f"more than {most}"
                raise ValueError(f"torchrun.{key}={value}: {problem}; accepted: a whole number, at least 1 and at most {most}")


@declared
@dataclass
class DriftConfig:
    """Does it matter? Go on for some optimizer steps, and see how far parameters and losses drift apart."""

    steps: int = config_key(
        0,
        affects="times",
        help="Optimizer steps from the initial parameters, for every case and optimizer; 0: none.",
    )
    optimizers: dict[str, float] = config_key(
        {"sgd": 0.1, "adam": 0.001},
        affects="selection",
        help="Learning rate of each: sgd, adam.",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.steps < 2**31:
            raise ValueError(f"drift.steps={self.steps}: expected a whole number of at least 0")
        for name, rate in self.optimizers.items():
            if name not in OPTIMIZERS:
                raise ValueError(f"drift.optimizers.{name}: no such optimizer; expected {', '.join(OPTIMIZERS)}")
            if not 0 < rate < float("inf"):
                raise ValueError(f"drift.optimizers.{name}={rate}: expected a learning rate of more than 0")

    @property
    def checkpoints(self) -> list[int]:
        """Steps after which parameters are compared: the powers of two, and the last."""
        return sorted({2**power for power in range(self.steps.bit_length()) if 2**power <= self.steps} | {self.steps} - {0})


@declared
@dataclass
class UntilConfig:
    """Iterate until the time is known well enough. What is asked for is reached by each case of each launch."""

    relative: float | None = config_key(
        None,
        affects="results",
        help="Half the 95 % interval of the median step, over the median, at which a case is left, as 0.02; null: not asked "
        "for. It is looked at again and again, and neighbours resemble each other: what is reached is a little wider than "
        "it seems.",
    )
    seconds: float = config_key(
        10.0,
        affects="results",
        help="A case's measured iterations end after so many seconds, however well the median is known then.",
    )
    most: int = config_key(1000, affects="results", help="And after so many iterations (a few more where batches take turns).")

    def __post_init__(self) -> None:
        if self.relative is not None and not 0 < self.relative < 1:
            raise ValueError(f"until.relative={self.relative}: expected a share of the median, between 0 and 1, as 0.02")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"until.seconds={self.seconds}: expected seconds, more than 0")
        if not 1 <= self.most < 2**31:
            raise ValueError(f"until.most={self.most}: expected a whole number of at least 1")


def _with_axes(config: type[Any]) -> type[Any]:
    """Add a field for each axis, before that of the probes: option to node. Applied before `dataclass`."""
    annotations = dict(config.__annotations__)
    probe = annotations.pop(PROBE)
    config.__annotations__ = annotations | dict.fromkeys(AXES, probe) | {PROBE: probe}
    for axis in AXES:
        setattr(config, axis, option_group())
    return config


@declared
@dataclass
@_with_axes
class BenchmarkConfig:
    """Everything that a run depends on. Written to config.yaml, and enough to repeat the run."""

    name: str = config_key(
        "default",
        affects="location",
        help="The run goes to `<results_dir>/<name>/<timestamp>/`. Letters, digits, `_`, `.` and `-`.",
    )
    results_dir: str = config_key("results", affects="location", help="Where runs go.")
    config_dir: str | None = config_key(
        None,
        affects="location",
        help="The folder of the user's own options and classes; set by --config-dir.",
    )
    seed: int = config_key(0, affects="results", help="Parameters and batches are drawn from it.")
    global_batch_size: int = config_key(64, affects="results", help="Samples in the batch of all ranks together.")
    iterations: int = config_key(
        10,
        affects="results",
        help="Measured iterations a case; where `until.relative` is given, the fewest, and as many more at a time.",
    )
    warm_up: int = config_key(
        2, affects="results", help="Iterations before the measured ones: recorded, marked, and never mixed in."
    )
    launches: int = config_key(
        1,
        affects="selection",
        help="How often the whole world is started, in fresh processes, as one run: times vary more between launches than "
        "within.",
    )
    order: str = config_key(
        "matrix",
        affects="results",
        help="matrix: case after case, as the configuration lists them; shuffled: another order in each launch; interleaved: "
        "in `rounds` rounds, in each of which every case makes its share of the iterations.",
    )
    rounds: int = config_key(5, affects="results", help="Visits to each case under order=interleaved.")
    exposed: bool = config_key(
        False,
        affects="times",
        help="Time each case also without communication, in turn with it: what of its communication is exposed, and what is "
        "hidden.",
    )
    queued: bool = config_key(
        True,
        affects="times",
        help="On CUDA, make the measured iterations of each case again with the host ahead of the device (clock cuda_queued): "
        "device time without launches. Each costs a step, a hold, and two barriers (docs/timing.md). An error in them "
        "fails the case.",
    )
    profile: bool = config_key(
        False,
        affects="selection",
        help="Once all is measured, run each case some iterations more under torch's profiler: one trace a rank "
        "(docs/traces.md).",
    )
    nvtx: bool = config_key(
        False,
        affects="times",
        help="Mark each case, iteration and phase as an NVTX range, for Nsight Systems, and its measured iterations as a "
        "capture range of the CUDA profiler (docs/traces.md). Needs a CUDA device.",
    )
    sample_hz: int = config_key(
        10,
        affects="times",
        help="Readings a second of the GPUs' clocks, power, temperature and load while the cases run; 0: none.",
    )
    threads_per_rank: int = config_key(1, affects="results", help="CPU threads of a rank. Other counts give other bits.")
    device: str = config_key("auto", affects="results", help="auto, cpu or cuda. auto: cuda where there is a CUDA device.")
    backend: str = config_key(
        "auto",
        affects="results",
        help="auto, gloo or nccl: the process group that is measured. auto: nccl on CUDA, gloo on the CPU.",
    )
    deadline_s: float = config_key(
        300.0,
        affects="conduct",
        help="Seconds after which a measured collective is given up: its case fails (gloo), or torch ends the rank (nccl).",
    )
    rendezvous_s: float = config_key(
        RENDEZVOUS_S,
        affects="conduct",
        help="Timeout of the rendezvous in seconds, from the arrival of the first rank.",
    )
    restarts: int = config_key(
        4,
        affects="conduct",
        help="Largest number of consecutive worlds that may fail without finishing a case before the run ends; "
        "after each a new one is started for the cases that remain. 0: the run ends with the first. A case in which the "
        "world has died twice is set aside as failed.",
    )
    diagnose: bool = config_key(
        False,
        affects="times",
        help="Find out why each case's gradient is not its float64 reference, and prove it where that can be "
        "(docs/diagnosis.md).",
    )
    single_rank: bool = config_key(
        False,
        affects="times",
        help="Hold every case also against what rank 0 computes alone on the whole batch, in the case's own precision.",
    )
    nccl_debug: bool = config_key(
        False,
        affects="times",
        help="Let NCCL log what it chooses for each collective, and show it in the report (docs/nccl.md). Logging costs time.",
    )
    story: str = config_key(
        "",
        affects="selection",
        help="The text whose claims the report judges: reduction_modes, gradient_sums or unequal_derivatives "
        "(docs/stories.md).",
    )
    env: dict[str, str] = config_key({}, affects="results", help="Environment variables of the ranks: `+env.NCCL_ALGO=Ring`.")
    launch: dict[str, Any] = config_key(
        {},
        affects="conduct",
        help="How the ranks are started, and what that needs: `launch=slurm launch.partition=gpu` (conf/launch/).",
    )
    torchrun: TorchrunConfig = field(default_factory=TorchrunConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    until: UntilConfig = field(default_factory=UntilConfig)

    probe: dict[str, Any] = option_group()

    def __post_init__(self) -> None:
        self._check_name()
        self._check_numbers()
        self._check_choices()
        self._check_batch()
        self._check_rounds()
        self._check_environment()
        to_launcher(self.launch)

    @property
    def launcher(self) -> Launcher:
        """How the ranks are started."""
        return to_launcher(self.launch)

    @property
    def world_size(self) -> int:
        """Ranks of the run; nproc_per_node must be known."""
        return (self.torchrun.nproc_per_node or 1) * self.torchrun.nnodes

    def _check_name(self) -> None:
        if not self.results_dir.strip():
            raise ValueError(f"results_dir={self.results_dir}: empty; accepted: a folder; try results_dir=.")
        for key in ("results_dir", "config_dir"):
            if not (getattr(self, key) or "").isprintable():
                raise ValueError(f"{key}={getattr(self, key)!r}: expected a path without control characters")
        if not _NAME.fullmatch(self.name) or ".." in self.name or self.name == ".":
            raise ValueError(
                f"name={self.name!r}: expected 1 to 100 letters, digits, '_', '.' or '-', and no '..': it becomes a folder"
            )

    def _check_numbers(self) -> None:
        for key, (least, most) in _LIMITS.items():
            value = getattr(self, key)
            if not least <= value <= most:
                problem = f"less than {least}" if value < least else f"more than {most}"
                raise ValueError(f"{key}={value}: {problem}; accepted: a whole number, at least {least} and at most {most}")
        for key in ("deadline_s", "rendezvous_s"):
            if not 0 < getattr(self, key) <= 1e6:
                raise ValueError(f"{key}={getattr(self, key)}: expected seconds, more than 0 and at most 1e6")

    def _check_rounds(self) -> None:
        if self.until.relative is not None and self.until.most < self.iterations:
            raise ValueError(f"until.most={self.until.most} is less than iterations={self.iterations}, which come first")
        if self.order != "matrix" and self.drift.steps:
            raise ValueError(f"drift.steps with order={self.order}: a drift is held against the cases beside it")
        if self.order != "interleaved":
            return
        if self.rounds > self.iterations:
            raise ValueError(
                f"rounds={self.rounds}: order=interleaved has iterations={self.iterations} to share out among them"
            )
        if self.until.relative is not None:
            raise ValueError("until.relative with order=interleaved: each round makes a given number of iterations")

    def _check_choices(self) -> None:
        for key, accepted in (("device", DEVICES), ("backend", BACKENDS), ("story", STORIES), ("order", ORDERS)):
            if getattr(self, key) not in accepted:
                known = ", ".join(name or "'' for none" for name in accepted)
                raise ValueError(f"{key}={getattr(self, key)!r}: expected one of {known}")
        if self.device == "cpu" and self.backend == "nccl":
            raise ValueError("backend=nccl with device=cpu: nccl reduces CUDA tensors only; use backend=gloo")
        if self.nvtx and self.device == "cpu":
            raise ValueError("nvtx=true: device=cpu has no NVTX ranges; accepted: device=cuda; try profile=true")
        for axis in AXES:
            if not getattr(self, axis):
                raise ValueError(f"{axis}=[]: select at least one option, as in {axis}=[NAME]; --help lists them")

    def _check_environment(self) -> None:
        for key, value in self.env.items():
            if not key or "=" in key or not f"{key}{value}".isprintable():
                raise ValueError(f"env: {key!r} to {value!r} cannot be an environment variable")

    def _check_batch(self) -> None:
        if self.global_batch_size < self.world_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is smaller than the world size {self.world_size}: "
                "some ranks would have no sample"
            )


_LIMITS = {
    "seed": (0, 2**63 - 1),
    "global_batch_size": (1, 2**31 - 1),
    "iterations": (1, 10**9),
    "warm_up": (0, 10**9),
    "threads_per_rank": (1, 1024),
    "sample_hz": (0, 100),
    "launches": (1, 10_000),
    "rounds": (1, 10**9),
    "restarts": (0, 10**6),
}
"""Keys that are whole numbers, with the minimum and the maximum of each; a larger value is a typing error."""


def to_config(composed: DictConfig) -> BenchmarkConfig:
    """The door at which DictConfig stops: checked dataclasses from here on. Raises RefusedError."""
    unknown = sorted(set(map(str, composed)) - {f.name for f in fields(BenchmarkConfig)})
    if unknown:
        raise RefusedError(f"{unknown[0]}: no such key of the configuration")
    config = to_dataclass(composed, ("env", "drift.optimizers"))
    assert isinstance(config, BenchmarkConfig)
    for group in (*AXES, PROBE):
        check_sweeps(group, getattr(config, group))
    return config


def load_config(path: Path) -> BenchmarkConfig:
    """Read the config.yaml of a run directory. Raises RefusedError when it is not one of ours."""
    try:
        content = read_bytes(path, most=_MOST_BYTES)
    except OSError as error:
        raise RefusedError(f"{path} is not the configuration of a run: {reason(error)}") from error
    return copy.deepcopy(_parsed(path, content))


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, content: bytes) -> BenchmarkConfig:
    """Configuration in a file that holds `content`. Parsing takes 25 ms, and each process of a run needs it several times."""
    try:
        _check_yaml(content.decode())
        read = OmegaConf.create(content.decode())
        if not isinstance(read, DictConfig):
            raise ValueError("expected keys and values")
        foreign = next(interpolations(OmegaConf.to_container(read, resolve=False)), None)
        for name in ARGUMENTS:  # of a run before version 5
            read.pop(name, None)
        loaded = OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), read)
    except (ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise RefusedError(f"{path} is not the configuration of a run: {reason(error)}") from error
    if foreign is not None:  # ${oc.env:...}: what stands in a run directory is data
        raise RefusedError(f"{path}: {foreign!r} refers to something else; a run's configuration is read as it stands")
    assert isinstance(loaded, DictConfig)
    config = to_config(loaded)
    check_size(config)
    return config


def _check_yaml(text: str) -> None:
    """Raise ValueError for aliases, which expand a few lines without limit, and for too many levels."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: expected no alias")
        if depth > _DEEPEST:
            raise ValueError(f"line {event.start_mark.line + 1}: expected at most {_DEEPEST} levels")


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_BYTES = 2**20
"""Largest size of a configuration, in bytes."""
_DEEPEST = 64
_MOST_ROWS = 1_000_000
"""Largest number of cases in all launches together; each has a row in the report."""


def check_size(config: BenchmarkConfig) -> None:
    """Raise RefusedError for a matrix of more cases than a run can list, before it is expanded."""
    cases = math.prod(count_variants(getattr(config, axis)) for axis in AXES)
    if cases * config.launches > _MOST_ROWS:
        raise RefusedError(
            f"launches={config.launches}: {cases} cases each are {cases * config.launches} in all; accepted: at most "
            f"{_MOST_ROWS}; try fewer launches, or fewer options"
        )


def values_affecting(config: BenchmarkConfig, *affects: Affects) -> dict[str, Any]:
    """Return the values of the keys that affect one of these, by dotted name; keys of the launcher are among them."""
    launcher = config.launcher
    values = values_of(config) | values_of(launcher, "launch.")
    declarations = (*keys_of(BenchmarkConfig), *keys_of(type(launcher), "launch."))
    return {each.name: values[each.name] for each in declarations if each.affects in affects}


def figures_digest(config: BenchmarkConfig) -> str:
    """SHA-256 of the keys on which figures depend, and of those that select what a run contains."""
    values = values_affecting(config, "results", "times", "selection")
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def dump_config(config: BenchmarkConfig) -> str:
    """The YAML text that load_config reads back."""
    return OmegaConf.to_yaml(node_of(config))


def node_of(config: BenchmarkConfig) -> DictConfig:
    """The configuration as OmegaConf has it, every text as it stands."""
    node = OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), literal(asdict(config)))
    assert isinstance(node, DictConfig)
    return node
