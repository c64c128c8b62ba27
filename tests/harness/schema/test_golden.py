"""Schemas of all tables as the writer makes them, held to a stored file: a change of a schema shows in a diff."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import torch

from harness.rank.writer import Writer
from harness.schema.declare import CASES
from harness.schema.matrix import expand_cases
from harness.schema.record import OK, TABLES, Outcome
from harness.schema.run_dir import HELD, RunDir
from launch.compose import compose_config
from tests.run_directory import GOLDEN
from tests.synthetic import NOW


def written(folder: Path) -> dict[str, dict[str, str]]:
    """Table to column to Arrow type, of files by the writer; without the parameters of options."""
    config = compose_config(["workload=[mlp_digits]", "reduction=[sum]", f"results_dir={folder}"], nproc_per_node=2)
    run_dir, (case,) = RunDir.create(config, NOW), expand_cases(config)
    writer = Writer(run_dir)
    writer.write_samples(case, [("step", "host")], [torch.ones(2, 1)] * 2, [(1, 1)])
    for table in [name for name in HELD[CASES] if name not in (CASES, "samples")]:
        writer.write(table, case.case_id, [])
    writer.write_probe("p", [], [])
    writer.write_outcome(case, Outcome(case_id=case.case_id, status=OK))
    files = {table: next(run_dir.table(table).glob("*.parquet")) for table in TABLES}
    return {table: _columns(file) for table, file in files.items()}


def _columns(file: Path) -> dict[str, str]:
    return {field.name: str(field.type) for field in pq.read_schema(file) if "." not in field.name}


def test_schemas_are_the_stored_ones(tmp_path: Path) -> None:
    assert written(tmp_path) == json.loads(GOLDEN.read_text())
