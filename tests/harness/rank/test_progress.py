"""A resumed run measures what its report counts as missing."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.probes.control import Control
from harness.rank.progress import take_up
from harness.rank.writer import Writer
from harness.report.frame import load_run
from harness.schema.run_dir import RunDir
from tests.synthetic import make_run, steps


def _other_option(run_dir: RunDir, case: str) -> None:
    file = run_dir.case_file("cases", case)
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(rows.column_names.index("aggregation"), "aggregation", pa.array(["flat"])), file)


def _no_memory(run_dir: RunDir, case: str) -> None:
    run_dir.case_file("memory", case).unlink()


def _no_verdict(run_dir: RunDir, case: str) -> None:
    for table in ("weights", "budget", "floors"):
        Writer(run_dir).write(table, case, [])


@pytest.mark.parametrize("damage", [_other_option, _no_memory, _no_verdict])
def test_a_case_that_is_missing_in_the_report_is_measured_again(damage: Callable[[RunDir, str], None], tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), "workload=[mlp_digits]", "reduction=[sum,mean]")
    damaged, whole = sorted(run_dir.listed())
    damage(run_dir, damaged)
    assert load_run(run_dir.path).missing == (damaged,)
    left = take_up(run_dir, run_dir.config(), 0, Control(None, 0, 1), retry=True)
    assert set(left.cases) == {whole}
    assert run_dir.listed() == {whole}
