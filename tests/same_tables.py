"""Tables of a run as pandas reads them from the files, compared with those of `load_run`."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from harness.report.frame import Run, load_run
from harness.schema.case import AXES
from harness.schema.record import TABLES


def assert_tables_equal(path: Path, run: Run | None = None) -> None:
    """Fail unless `pandas.read_parquet(run / table)` equals the frame of `load_run(run)`, for every table of a sound run.

    Rows may stand in another order. The tables that have files are compared in columns, types, categories and values; of others
    `load_run` gives a frame without rows. `run`: the run, where it is loaded already.
    """
    run = run or load_run(path)
    assert run.damaged == {}
    for table in TABLES:
        files = list((run.path / table).glob("[!.]*.parquet"))
        ours = run.every(table)
        if not files:
            assert ours.empty and list(ours.columns)[: len(TABLES[table].columns)]
            continue
        schemas = {str(pq.read_schema(file)) for file in files}
        assert len(schemas) == 1, f"{table}: files of {len(schemas)} schemas"
        read = pd.read_parquet(run.path / table)
        pd.testing.assert_frame_equal(_sorted(read), _sorted(ours), check_categorical=True, obj=table)


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows in an order of their own. Categories of axes are in the configuration's order, others in the order of reading."""
    coded = [name for name in rows if isinstance(rows[name].dtype, pd.CategoricalDtype) and name not in AXES]
    rows = rows.assign(**{name: rows[name].cat.set_categories(sorted(rows[name].cat.categories)) for name in coded})
    texts = list(map(str, rows.itertuples(index=False)))
    return rows.iloc[sorted(range(len(rows)), key=texts.__getitem__)].reset_index(drop=True)
