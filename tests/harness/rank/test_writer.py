"""Tables that rank 0 writes."""

from pathlib import Path

import pyarrow.parquet as pq
import torch

from harness.rank.writer import Writer
from harness.report.frame import load_run
from harness.schema.matrix import expand_cases
from harness.schema.record import FAILED, Outcome
from harness.schema.run_dir import RunDir
from harness.schema.tables import LONGEST
from launch.compose import compose_config
from tests.synthetic import NOW, make_run, steps


def test_each_visit_has_its_own_warm_ups(tmp_path: Path) -> None:
    config = compose_config(["workload=[mlp_digits]", "reduction=[sum]", f"results_dir={tmp_path}"], nproc_per_node=2)
    run_dir = RunDir.create(config, NOW)
    (case,) = expand_cases(config)
    seconds = torch.arange(10, dtype=torch.float64).reshape(5, 2)
    columns = [("forward", "host"), ("step", "host")]
    Writer(run_dir).write_samples(case, columns, [seconds, seconds + 100], visits=[(2, 1), (1, 1)])
    rows = pq.read_table(run_dir.case_file("samples", case.case_id, 0)).to_pandas()
    steps = rows[rows.phase == "step"].sort_values(["rank", "iteration"])
    assert steps["rank"].tolist() == [0] * 5 + [1] * 5
    assert steps.iteration.tolist() == [0, 1, 2, 3, 4] * 2
    assert steps.visit.tolist() == [0, 0, 0, 1, 1] * 2
    assert steps.warm_up.tolist() == [True, True, False, True, False] * 2
    assert steps.seconds.tolist() == [1, 3, 5, 7, 9, 101, 103, 105, 107, 109]


def test_a_long_message_is_cut_to_what_is_read(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), "workload=[mlp_digits]", "reduction=[sum]")
    case = expand_cases(run_dir.config())[0]
    Writer(run_dir).write_outcome(case, Outcome(case_id=case.case_id, status=FAILED, reason="\u00e9" * LONGEST))
    run = load_run(run_dir.path)
    assert run.damaged == {}
    assert list(run.cases.reason) == ["\u00e9" * (LONGEST // 4)]
