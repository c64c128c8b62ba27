"""The rows of a case, as Parquet files. The row in `cases` is written last: with it the case is finished."""

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from harness.schema.case import AXES, Case
from harness.schema.record import METRICS, Discrepancy, Finding, Outcome
from harness.schema.run_dir import RunDir, writing

_LABEL = pa.dictionary(pa.int32(), pa.string())
_SAMPLES = pa.schema(
    [
        ("case_id", _LABEL),
        ("rank", pa.int32()),
        ("iteration", pa.int32()),
        ("warm_up", pa.bool_()),
        ("phase", _LABEL),
        ("clock", _LABEL),
        ("seconds", pa.float64()),
    ]
)
_TYPES = {"max_ulp": pa.float64(), "bitwise_equal": pa.bool_(), "nonfinite": pa.int64()}
_DISCREPANCIES = pa.schema(
    [("case_id", _LABEL), ("rank", pa.int32()), ("against", pa.string()), ("parameter", pa.string())]
    + [(metric, _TYPES.get(metric, pa.float64())) for metric in METRICS]
)
_FINDINGS = pa.schema([("case_id", _LABEL), ("kind", pa.string()), ("statement", pa.string()), ("evidence", pa.float64())])


class Writer:
    """Writes what rank 0 has gathered."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir

    def write_samples(self, case: Case, columns: Sequence[tuple[str, str]], ranks: Sequence[Tensor], warm_up: int) -> None:
        """`ranks` holds a float64 [iterations, columns] a rank, warm-ups first; `columns` are (phase, clock)."""
        rows = [
            (case.case_id, rank, iteration, iteration < warm_up, phase, clock, seconds)
            for rank, table in enumerate(ranks)
            for iteration, row in enumerate(table.tolist())
            for (phase, clock), seconds in zip(columns, row, strict=True)
        ]
        self._write("samples", case, rows, _SAMPLES)

    def write_discrepancies(self, case: Case, rows: Sequence[Discrepancy]) -> None:
        """Comparisons of the case."""
        integers = {METRICS.index("bitwise_equal"): bool, METRICS.index("nonfinite"): int}
        table = [
            (
                *(row.case_id, row.rank, row.against, row.parameter),
                *(integers.get(index, float)(metric) for index, metric in enumerate(row.metrics)),
            )
            for row in rows
        ]
        self._write("discrepancies", case, table, _DISCREPANCIES)

    def write_findings(self, case: Case, rows: Sequence[Finding]) -> None:
        """Verdicts on the case."""
        self._write("findings", case, [tuple(asdict(row).values()) for row in rows], _FINDINGS)

    def write_outcome(self, case: Case, outcome: Outcome) -> None:
        """The row that makes the case a finished one: outcome, axes and parameters."""
        described = {axis: case.options[axis] for axis in AXES}
        record = asdict(outcome)
        row = {"case_id": record.pop("case_id"), **described, **dict(case.parameters), **record}
        self._save("cases", case, pa.Table.from_pylist([row]))

    def _write(self, table: str, case: Case, rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> None:
        columns = zip(*rows, strict=True) if rows else [()] * len(schema)
        arrays = [_array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
        self._save(table, case, pa.Table.from_arrays(arrays, schema=schema))

    def _save(self, table: str, case: Case, content: pa.Table) -> None:
        with writing(self._run_dir.case_file(table, case.case_id)) as part:
            pq.write_table(content, part)


def _array(values: list[object], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.string()).cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)
