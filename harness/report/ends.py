"""Worlds that ended before their time: which rank, where, and what it said last."""

from collections.abc import Iterator

import pandas as pd

from harness.report.frame import Run
from harness.report.tables import Table

_NOTE = "Each time the world of ranks was started again, as far as restarts allow, for what remained; a case in which it died \
twice is set aside as failed."


def end_tables(run: Run) -> Iterator[Table]:
    """What ends.json tells; nothing where nothing went wrong."""
    rows = [
        {"at": end.get("at", ""), "launch": end.get("launch", 0), **{column: culprit.get(column, "") for column in _COLUMNS}}
        for end in run.ends
        for culprit in end.get("culprits", [])
    ]
    if rows:
        yield Table("Ended early", pd.DataFrame(rows).astype(str), _NOTE)
    if run.damaged:
        yield Table("Files that are not whole", pd.DataFrame({"file": run.damaged}), _DAMAGED)


_COLUMNS = ("rank", "host", "case", "phase", "how")
_DAMAGED = "Their cases count as missing; `python -m launch resume=RUN_DIR` measures them again."
