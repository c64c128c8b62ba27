"""Shape of environment.json and failures.json, and what its keys describe. docs/run_directory.md documents the keys.

A key is a fact of the machine and of what ran on it, unless its shape says otherwise: OfOneRun for what differs between any two
runs and changes no figure, OfConfiguration for what config.yaml says in full.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.schema.reading import NotWholeError, load_json
from harness.schema.shape import ANY, COUNT, CPUS, FLAG, MISSING, REAL, TEXT, WHOLE, Problems, Record, Rows


@dataclass(frozen=True)
class OfOneRun:
    """Shape of a value that describes one run, one process or one moment."""

    of: Any

    def fit(self, value: Any, place: str, problems: Problems) -> Any:
        """See Shape.fit."""
        return self.of.fit(value, place, problems)


@dataclass(frozen=True)
class OfConfiguration:
    """Shape of a value that follows from config.yaml."""

    of: Any

    def fit(self, value: Any, place: str, problems: Problems) -> Any:
        """See Shape.fit."""
        return self.of.fit(value, place, problems)


_STATE = Record(
    {
        **dict.fromkeys(("cpu_mhz", "sm_mhz", "memory_mhz", "temperature_c", "utilization_percent"), REAL),
        "slowed_by": Rows(TEXT),
        "idle": FLAG,
        "slowed_s": Record({}, REAL),
    }
)
_PROCESS = Record({"pid": WHOLE, "name": TEXT, "cpu_s": REAL, "bytes": COUNT})
_HOST = Record(
    {
        **dict.fromkeys(("host", "kernel", "libc", "cpu"), TEXT),
        "boot_id": OfOneRun(TEXT),
        **dict.fromkeys(("cpus", "memory_bytes"), COUNT),
        **dict.fromkeys(("max_mhz", "cpu_quota"), REAL),
        "turbo": FLAG,
        "governors": Record({}, COUNT),
        "numa": Record({}, TEXT),
        "load_average": OfOneRun(Rows(REAL)),
        "nccl_conf": Record({}, TEXT),
        "topology": Record({"uuids": Rows(TEXT), "links": Record({}, TEXT)}),
    }
)
RANK = Record(
    {
        "pid": OfOneRun(ANY),
        **dict.fromkeys(("host", "device", "device_name", "uuid", "compute_capability", "driver", "pci"), TEXT),
        **dict.fromkeys(("threads", "interop_threads", "memory_bytes", "multiprocessors"), COUNT),
        **dict.fromkeys(("max_sm_mhz", "max_memory_mhz", "power_limit_w"), REAL),
        "cpus": CPUS,
    }
)
_SEEN_ON_HOST = Record(
    {
        **dict.fromkeys(("rank", "cpu_throttles", "quota_throttles"), WHOLE),
        **dict.fromkeys(("window_s", "busy_s", "own_s", "stolen_s"), REAL),
        "others": Rows(_PROCESS),
    }
)
_SEEN_ON_RANK = Record(
    {
        "before": _STATE,
        "after": _STATE,
        "device_processes": Record({"own_pid_seen": FLAG, "others": Rows(_PROCESS)}),
    }
)
_CONDITION = Record({"launch": WHOLE, "began": TEXT, "hosts": Rows(_SEEN_ON_HOST), "ranks": Rows(_SEEN_ON_RANK, dict)})
ENVIRONMENT = Record(
    {
        **dict.fromkeys(("commit", "backend", "device"), TEXT),
        **dict.fromkeys(("world_size", "cores", "threads_per_rank"), COUNT),
        "config_sha256": OfConfiguration(TEXT),
        "schema_version": OfOneRun(COUNT),
        "argv": OfOneRun(Rows(TEXT)),
        "versions": Record({}, TEXT),
        "dirty": FLAG,
        "hosts": Rows(_HOST, dict),
        "ranks": Rows(RANK, dict),
        "environment_variables": Record({"SLURM_JOB_ID": OfOneRun(TEXT)}, TEXT),
        "variables_differ": Record({}, Record({}, TEXT)),
        "data": Record({}, Record({"samples": COUNT, "sha256": TEXT, "batches_sha256": Rows(TEXT)})),
        "changed": OfOneRun(Rows(ANY)),
        "conditions": OfOneRun(Rows(_CONDITION)),
    }
)
_CULPRIT = Record({"rank": WHOLE, **dict.fromkeys(("host", "case", "phase", "how", "words"), TEXT)})
FAILURES = Rows(Record({"at": TEXT, "launch": WHOLE, "culprits": Rows(_CULPRIT)}))


def without_noise(value: Any, shape: Any = ENVIRONMENT) -> Any:
    """Return environment.json, or the part of it that has this shape, without what describes one run."""
    return _without((OfOneRun,), value, shape)


def machine_facts(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what environment.json says about the machine and what ran on it: two runs with equal facts are comparable."""
    kept: dict[str, Any] = _without((OfOneRun, OfConfiguration), environment, ENVIRONMENT)
    return kept


def _without(kinds: tuple[type, ...], value: Any, shape: Any) -> Any:
    if isinstance(shape, Rows) and isinstance(value, list):
        return [_without(kinds, entry, shape.of) for entry in value]
    if isinstance(shape, Record) and isinstance(value, Mapping):
        shapes = {key: shape.keys.get(key, shape.others) for key in value}
        return {key: _without(kinds, entry, shapes[key]) for key, entry in value.items() if not isinstance(shapes[key], kinds)}
    return value


@dataclass(frozen=True)
class Fitted:
    """Content of a file, as far as it has its declared shape."""

    content: Any
    """None if nothing of it could be read."""
    problems: tuple[str, ...] = ()
    """Lines that name what was left out."""
    there: bool = True


def read_fitted(path: Path, shape: Record | Rows) -> Fitted:
    """Read a JSON file of a run."""
    problems: Problems = []
    try:
        content = shape.fit(load_json(path), "", problems)
    except FileNotFoundError:
        return Fitted(None, there=False)
    except (OSError, NotWholeError) as error:
        return Fitted(None, (str(error),))
    return Fitted(None if content is MISSING else content, tuple(problems))
