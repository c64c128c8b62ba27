"""The rows of a case, as Parquet files. The row in `cases` is written last: with it the case is finished."""

from collections.abc import Sequence
from dataclasses import asdict, fields

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from harness.rank.footprint import COLUMNS
from harness.schema.case import AXES, Case
from harness.schema.record import (
    METRICS,
    Asked,
    Device,
    Diagnosis,
    Discrepancy,
    Drift,
    Finding,
    Floor,
    Norm,
    Observation,
    Outcome,
    Step,
    Timing,
    Weight,
)
from harness.schema.run_dir import RunDir
from harness.schema.tables import LONGEST
from harness.schema.whole_files import make_folder, writing

_LABEL = pa.dictionary(pa.int32(), pa.string())
_SAMPLES = pa.schema(
    [
        ("case_id", _LABEL),
        ("launch", pa.int32()),
        ("rank", pa.int32()),
        ("visit", pa.int32()),
        ("iteration", pa.int32()),
        ("warm_up", pa.bool_()),
        ("phase", _LABEL),
        ("clock", _LABEL),
        ("seconds", pa.float64()),
    ]
)
_TYPES = {"max_ulp": pa.float64(), "bitwise_equal": pa.bool_(), "nonfinite": pa.int64()}
_DISCREPANCIES = pa.schema(
    [("case_id", _LABEL), ("launch", pa.int32())]
    + [("rank", pa.int32()), ("against", pa.string()), ("parameter", pa.string())]
    + [(metric, _TYPES.get(metric, pa.float64())) for metric in METRICS]
)
_MEMORY = pa.schema(
    [("case_id", _LABEL), ("launch", pa.int32()), ("rank", pa.int32())] + [(column, pa.int64()) for column in COLUMNS]
)
_FINDINGS = pa.schema(
    [("case_id", _LABEL), ("launch", pa.int32()), ("kind", pa.string()), ("statement", pa.string()), ("evidence", pa.float64())]
)
_DRIFTS = pa.schema(
    [("case_id", _LABEL), ("launch", pa.int32())]
    + [("against", pa.string()), ("optimizer", _LABEL), ("step", pa.int32())]
    + [(number, pa.float64()) for number in ("loss", "against_loss", "max_abs", "relative_l2")]
    + [("bitwise_equal", pa.bool_())]
)
_PROBES = pa.schema([(text, pa.string()) for text in ("probe", "subject", "status", "reason")] + [("wall_s", pa.float64())])
_OBSERVATIONS = pa.schema(
    [
        ("probe", _LABEL),
        ("subject", _LABEL),
        ("rank", pa.int32()),
        ("setting", pa.string()),
        ("quantity", pa.string()),
        ("value", pa.float64()),
        ("text", pa.string()),
    ]
)

_COLLECTIVES = pa.schema(
    [
        ("probe", _LABEL),
        ("subject", _LABEL),
        ("rank", pa.int32()),
        ("collective", _LABEL),
        ("dtype", _LABEL),
        ("bytes", pa.int64()),
        ("count", pa.int64()),
        ("in_place", pa.bool_()),
        ("in_flight", pa.int32()),
        ("iteration", pa.int32()),
        ("warm_up", pa.bool_()),
        ("clock", _LABEL),
        ("seconds", pa.float64()),
    ]
)


Seen = tuple[str, int, Observation | Timing]
"""(subject, rank, what was seen)"""


class Writer:
    """Writes what rank 0 has gathered."""

    def __init__(self, run_dir: RunDir, launch: int = 0) -> None:
        self._run_dir, self._launch = run_dir, launch

    def write_samples(
        self, case: Case, columns: Sequence[tuple[str, str]], ranks: Sequence[Tensor], visits: Sequence[tuple[int, int]]
    ) -> None:
        """`ranks` holds a float64 [iterations, columns] a rank; `columns` are (phase, clock), `visits` (warm-ups, measured)."""
        seconds = torch.stack(list(ranks))
        rank, iteration, column = (
            place.flatten() for place in torch.meshgrid(*map(torch.arange, seconds.shape), indexing="ij")
        )
        visit = torch.tensor([number for number, counts in enumerate(visits) for _ in range(sum(counts))])
        warm_up = torch.tensor([place < counts[0] for counts in visits for place in range(sum(counts))])
        phases, clocks = zip(*columns, strict=True)
        of_column = column.int().numpy()
        arrays = {
            "case_id": _repeated(case.case_id, len(rank)),
            "launch": pa.repeat(pa.scalar(self._launch, pa.int32()), len(rank)),
            "rank": rank.int().numpy(),
            "visit": visit[iteration].int().numpy(),
            "iteration": iteration.int().numpy(),
            "warm_up": warm_up[iteration].numpy(),
            "phase": pa.DictionaryArray.from_arrays(of_column, pa.array(phases)),
            "clock": pa.DictionaryArray.from_arrays(of_column, pa.array(clocks)),
            "seconds": seconds.flatten().numpy(),
        }
        self._save("samples", case.case_id, pa.table(arrays, schema=_SAMPLES))

    def write_memory(self, case: Case, ranks: Tensor) -> None:
        """`ranks` is int64 [ranks, COLUMNS]."""
        rows = [(case.case_id, self._launch, rank, *figures) for rank, figures in enumerate(ranks.tolist())]
        self._write("memory", case.case_id, rows, _MEMORY)

    def write_devices(self, case: Case, rows: Sequence[Device]) -> None:
        """Write the GPU's figures of each rank."""
        make_folder(self._run_dir.table("devices"), self._run_dir.path)  # a run of an earlier version has none
        own = [{**asdict(row), "launch": self._launch} for row in rows]
        self._save("devices", case.case_id, pa.Table.from_pylist(own, schema=_schema_of(Device, pa.int64())))

    def write_discrepancies(self, case: Case, rows: Sequence[Discrepancy]) -> None:
        """Comparisons of the case."""
        integers = {METRICS.index("bitwise_equal"): bool, METRICS.index("nonfinite"): int}
        table = [
            (
                *(row.case_id, self._launch, row.rank, row.against, row.parameter),
                *(integers.get(index, float)(metric) for index, metric in enumerate(row.metrics)),
            )
            for row in rows
        ]
        self._write("discrepancies", case.case_id, table, _DISCREPANCIES)

    def write_norms(self, case: Case, rows: Sequence[Norm]) -> None:
        """Norms by group of parameters."""
        make_folder(self._run_dir.table("norms"), self._run_dir.path)  # a run of an earlier version has none
        own = [{**asdict(row), "launch": self._launch} for row in rows]
        self._save("norms", case.case_id, pa.Table.from_pylist(own, schema=_schema_of(Norm, pa.int64())))

    def write_findings(self, case: Case, rows: Sequence[Finding]) -> None:
        """Verdicts on the case."""
        self._write("findings", case.case_id, [self._of_launch(row) for row in rows], _FINDINGS)

    def write_drifts(self, case: Case, rows: Sequence[Drift]) -> None:
        """How far the case drifts from the others of its setting."""
        self._write("drifts", case.case_id, [self._of_launch(row) for row in rows], _DRIFTS)

    def write_diagnosis(self, case: Case, rows: Sequence[Diagnosis | Weight | Step | Floor]) -> None:
        """The rows of all its tables."""
        for table, kind in _DIAGNOSED.items():
            own = [{"case_id": case.case_id, "launch": self._launch, **_but_case(row)} for row in rows if isinstance(row, kind)]
            self._save(table, case.case_id, pa.Table.from_pylist(own, schema=_schema_of(kind)))

    def write_probe(self, probe: str, asked: Sequence[Asked], seen: Sequence[Seen], part: str = "") -> None:
        """A probe's answers; `part`: those of one that is not finished, in files of that name."""
        for table, kind, schema in (("observations", Observation, _OBSERVATIONS), ("collectives", Timing, _COLLECTIVES)):
            rows = [(probe, subject, rank, *vars(row).values()) for subject, rank, row in seen if isinstance(row, kind)]
            self._write(table, part or probe, rows, schema)
        self._write("probes", part or probe, [tuple(asdict(row).values()) for row in asked], _PROBES)

    def write_part(self, probe: str, asked: Sequence[Asked], seen: Sequence[Seen]) -> None:
        """Answers of a probe that is not finished, beside those that are there."""
        self.write_probe(probe, asked, seen, self._run_dir.new_part(probe))

    def drop_parts(self, probe: str) -> None:
        """A finished probe has whole files."""
        self._run_dir.drop_parts(probe)

    def write_outcome(self, case: Case, outcome: Outcome) -> None:
        """The row that makes the case a finished one: outcome, axes and parameters."""
        described = {axis: case.options[axis] for axis in AXES}
        record = asdict(outcome)
        row = {"case_id": record.pop("case_id"), "launch": self._launch, **described, **dict(case.parameters), **record}
        self._save("cases", case.case_id, pa.Table.from_pylist([row]))

    def _of_launch(self, row: Finding | Drift) -> tuple[object, ...]:
        case_id, *others = asdict(row).values()
        return (case_id, self._launch, *others)

    def _write(self, table: str, name: str, rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> None:
        columns = zip(*rows, strict=True) if rows else [()] * len(schema)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)]
        self._save(table, name, pa.Table.from_arrays(arrays, schema=schema))

    def _save(self, table: str, name: str, content: pa.Table) -> None:
        with writing(self._run_dir.case_file(table, name, self._launch), self._run_dir.path) as file:
            pq.write_table(_shortened(content), file)


def _shortened(content: pa.Table) -> pa.Table:
    """Cut texts to the length that readers accept: the message of an error may be longer."""
    for place, field in enumerate(content.schema):
        if pa.types.is_string(field.type):
            text = pc.utf8_slice_codeunits(content.column(place), 0, LONGEST // 4)  # a character has 4 bytes at most
            content = content.set_column(place, field, text)
    return content


_DIAGNOSED: dict[str, type[Diagnosis | Weight | Step | Floor]] = {
    "diagnoses": Diagnosis,
    "weights": Weight,
    "budget": Step,
    "floors": Floor,
}
_KINDS = {"str": pa.string(), "float": pa.float64(), "int": pa.int32(), "bool": pa.bool_()}


def _schema_of(kind: type, whole: pa.DataType = _KINDS["int"]) -> pa.Schema:
    """A column a field, beside the case and its launch; `whole`: the type of whole numbers."""
    kinds = {**_KINDS, "int": whole}
    own = [(field.name, kinds[str(getattr(field.type, "__name__", field.type))]) for field in fields(kind)]
    return pa.schema([("case_id", pa.string()), ("launch", pa.int32()), *own[1:]])


def _but_case(row: Diagnosis | Weight | Step | Floor) -> dict[str, object]:
    return {name: value for name, value in asdict(row).items() if name != "case_id"}


def _repeated(text: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([text]))
