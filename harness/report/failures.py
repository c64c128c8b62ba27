"""Worlds that failed: which rank, where, and its last words. Files that are damaged."""

from collections.abc import Iterator, Sequence

import pandas as pd

from harness.report.frame import Run
from harness.report.tables import Table
from harness.schema.run_dir import RunDir


def failure_tables(run: Run) -> Iterator[Table]:
    """Tables of failures.json and of damaged files; none if nothing went wrong."""
    rows = [
        {"at": end.get("at", ""), "launch": end.get("launch", 0), **{column: culprit.get(column, "") for column in _COLUMNS}}
        for end in run.failures
        for culprit in end.get("culprits", [])
    ]
    if rows:
        yield Table("Ended early", pd.DataFrame(rows).astype(str), _note(run.config.restarts) + _dumps(run))
    if run.damaged:
        yield damaged_table([run])


def _dumps(run: Run) -> str:
    """Sentence on the files of torch's flight recorder; the ranks that wrote them had called collectives that did not end."""
    names = [path.name for path in RunDir(run.path).ranks.flight_dumps()]
    if not names:
        return ""
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f" The last collectives of ranks, by torch's flight recorder (pickles; torchfrtrace shows them): ranks/ has {shown}."


def damaged_table(runs: Sequence[Run]) -> Table:
    """Files that are not whole, of one run or of several."""
    several = len(runs) > 1
    rows = [(f"{run.path}/{file}" if several else file, why) for run in runs for file, why in run.damaged.items()]
    rows = rows[:_MOST] + [(f"and {len(rows) - _MOST} more", "")] * (len(rows) > _MOST)
    return Table("Files that are not whole", pd.DataFrame(rows, columns=["file", "why"]), _DAMAGED)


def _note(restarts: int) -> str:
    if not restarts:
        return "restarts=0: the run ends with the first."
    return (
        f"After each the world of ranks is started again for what remains, until {restarts} (restarts) in a row have finished "
        "nothing. A case in which two ended is set aside as failed."
    )


_COLUMNS = ("rank", "host", "case", "phase", "how")
_MOST = 200
_NAMED = 8
_DAMAGED = (
    "A case, or probe, with a file that is not whole counts as missing; `python -m launch --resume RUN_DIR` measures it again. "
    "Of other files, what is named here is left out of the report."
)
