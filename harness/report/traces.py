"""The profiler's traces of a run: which there are, and what opens them."""

import pandas as pd

from harness.report.frame import Run
from harness.report.tables import Table
from harness.schema.run_dir import RunDir

_NOTE = (
    "Of some more iterations of each case, under torch's profiler, which slows them down: no number here comes from them. "
    "ui.perfetto.dev opens a file as it is; tensorboard --logdir traces shows them all, with its plugin torch-tb-profiler."
)


def trace_tables(run: Run) -> list[Table]:
    """One table with a row for each traced case; none where no traces were asked for."""
    if not run.config.profile:
        return []
    found = RunDir(run.path).traces()
    rows = [(case_id, len(paths), str(paths[0].parent.relative_to(run.path))) for case_id, paths in found.items()]
    return [Table("Traces", pd.DataFrame(rows, columns=["case", "ranks", "folder"]), _NOTE)]
