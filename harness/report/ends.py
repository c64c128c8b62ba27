"""Worlds that ended before their time: which rank, where, and what it said last."""

from collections.abc import Iterator

import pandas as pd

from harness.report.frame import Run
from harness.report.tables import Table


def end_tables(run: Run) -> Iterator[Table]:
    """What ends.json tells; nothing where nothing went wrong."""
    rows = [
        {"at": end.get("at", ""), "launch": end.get("launch", 0), **{column: culprit.get(column, "") for column in _COLUMNS}}
        for end in run.ends
        for culprit in end.get("culprits", [])
    ]
    if rows:
        yield Table("Ended early", pd.DataFrame(rows).astype(str), _note(run.config.restarts))
    if run.damaged:
        yield Table("Files that are not whole", pd.DataFrame({"file": run.damaged}), _DAMAGED)


def _note(restarts: int) -> str:
    if not restarts:
        return "restarts=0: the run ends with the first."
    return (
        f"After each the world of ranks is started again for what remains, until {restarts} (restarts) in a row have finished "
        "nothing. A case in which two ended is set aside as failed."
    )


_COLUMNS = ("rank", "host", "case", "phase", "how")
_DAMAGED = "Their cases count as missing; `python -m launch resume=RUN_DIR` measures them again."
