"""Shape of environment.json and failures.json. docs/run_directory.md documents the keys."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.schema.reading import NotWholeError, load_json
from harness.schema.shape import ANY, COUNT, CPUS, FLAG, MISSING, REAL, TEXT, WHOLE, Problems, Record, Rows

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
        **dict.fromkeys(("host", "boot_id", "kernel", "libc", "cpu"), TEXT),
        **dict.fromkeys(("cpus", "memory_bytes"), COUNT),
        **dict.fromkeys(("max_mhz", "cpu_quota"), REAL),
        "turbo": FLAG,
        "governors": Record({}, COUNT),
        "numa": Record({}, TEXT),
        "load_average": Rows(REAL),
        "nccl_conf": Record({}, TEXT),
        "topology": Record({"uuids": Rows(TEXT), "links": Record({}, TEXT)}),
    }
)
_RANK = Record(
    {
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
        **dict.fromkeys(("commit", "backend", "device", "config_sha256"), TEXT),
        **dict.fromkeys(("schema_version", "world_size", "cores", "threads_per_rank"), COUNT),
        "argv": Rows(TEXT),
        "versions": Record({}, TEXT),
        "dirty": FLAG,
        "hosts": Rows(_HOST, dict),
        "ranks": Rows(_RANK, dict),
        "environment_variables": Record({}, TEXT),
        "variables_differ": Record({}, Record({}, TEXT)),
        "data": Record({}, Record({"samples": COUNT, "sha256": TEXT, "batches_sha256": Rows(TEXT)})),
        "changed": Rows(ANY),
        "conditions": Rows(_CONDITION),
    }
)
_CULPRIT = Record({"rank": WHOLE, **dict.fromkeys(("host", "case", "phase", "how", "words"), TEXT)})
FAILURES = Rows(Record({"at": TEXT, "launch": WHOLE, "culprits": Rows(_CULPRIT)}))


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
