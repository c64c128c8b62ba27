"""Tables of NCCL's choices in a run."""

from collections.abc import Iterator, Mapping

import pandas as pd

from harness.report.frame import Run
from harness.report.nccl_log import COLUMNS, NcclLog
from harness.report.tables import Table

_NOTE = (
    "From NCCL's own log, in which rank 0 of each communicator alone writes its choices. It covers every call of the run: "
    "pre-flight, warm-up and checks too. bytes: of the message, as nccl-tests counts. Logging takes time of every call."
)
_NOT_LOGGED = "not logged"


def choices_frame(run: Run) -> pd.DataFrame:
    """One row a collective, size, algorithm, protocol and channels; empty without a log."""
    return run.nccl.choices if run.nccl is not None else pd.DataFrame(columns=COLUMNS)


def nccl_tables(run: Run) -> Iterator[Table]:
    """The choices, and what else the log says of the communicators."""
    if run.nccl is None:
        return
    if len(run.nccl.choices):
        yield Table("NCCL's choices", _choices(run.nccl.choices), _NOTE)
    lacks = "incomplete" if len(run.nccl.choices) else "without a choice"
    rows = [*_facts(run.nccl), *((lacks, run.nccl.reason),) * bool(run.nccl.reason)]
    yield Table("NCCL's log", pd.DataFrame(rows, columns=["what", "logged"]))


def _choices(choices: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "collective": choices.collective.where(choices.collective != "", _NOT_LOGGED),
            "bytes": [_size(row) for row in choices.to_dict("records")],
            "algorithm": choices.algorithm,
            "protocol": choices.protocol,
            "channels": [_channels(row) for row in choices.to_dict("records")],
            "calls": choices.calls.map(str),
        }
    )


def _size(row: Mapping[object, object]) -> str:
    known = pd.notna(row["message_bytes"])
    return str(row["message_bytes"]) if known else f"{row['bytes']} a rank"


def _channels(row: Mapping[object, object]) -> str:
    low, high = row["channel_low"], row["channel_high"]
    return f"{low}..{high}" if pd.notna(low) else _NOT_LOGGED


def _facts(log: NcclLog) -> Iterator[tuple[str, str]]:
    """Values that one process, or one communicator, logs are listed once, with how often."""
    for name, values in log.facts.items():
        yield name, "; ".join(f"{value} ({count} times)" if count > 1 else value for value, count in values.items())
    for warning in dict.fromkeys(log.warnings):
        yield "warning", warning
