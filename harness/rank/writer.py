"""The rows of a case, as Parquet files. The row in `cases` is written last: with it the case is finished."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from harness.schema.arrow import Parameters, coded, parameter_values, parameters_of, schema_of
from harness.schema.case import AXES, Case
from harness.schema.config import BenchmarkConfig
from harness.schema.declare import CASES, GROUP, PROBES
from harness.schema.file_names import file_name
from harness.schema.matrix import expand_cases
from harness.schema.reading import NotWholeError
from harness.schema.record import TABLES, Asked, Observation, Outcome, Timing
from harness.schema.run_dir import HELD, RunDir
from harness.schema.tables import LONGEST, has_schema, read_rows
from harness.schema.whole_files import make_folder, writing

Seen = tuple[str, int, Observation | Timing]
"""(subject, rank, what was seen)"""


class Writer:
    """Writes what rank 0 has gathered. `config` is the run's own where it is not given."""

    def __init__(self, run_dir: RunDir, launch: int = 0, config: BenchmarkConfig | None = None) -> None:
        self._run_dir, self._launch, self._given = run_dir, launch, config

    @cached_property
    def _config(self) -> BenchmarkConfig:
        return self._given or self._run_dir.config()

    @cached_property
    def _parameters(self) -> Parameters:
        """Columns of the parameters of all cases: every file of `cases` has them all."""
        return parameters_of(expand_cases(self._config))

    def write(self, table: str, name: str, rows: Iterable[object]) -> None:
        """Write the file of a case, or of a probe; a row is of the class that declares the table, or a mapping of columns."""
        same = {"launch": self._launch} if TABLES[table].launched else {}
        schema = schema_of(table)
        records = [same | (dict(row) if isinstance(row, Mapping) else vars(row)) for row in rows]
        arrays = [
            pa.array([record[column] for record in records], kind)
            for column, kind in zip(schema.names, schema.types, strict=True)
        ]
        self._save(table, name, pa.Table.from_arrays(arrays, schema=schema))

    def write_samples(
        self, case: Case, columns: Sequence[tuple[str, str]], ranks: Sequence[Tensor], visits: Sequence[tuple[int, int]]
    ) -> None:
        """`ranks` holds a float64 [iterations, columns] a rank; `columns` are (phase, clock), `visits` (warm-ups, measured)."""
        self._save("samples", case.case_id, sample_rows(case.case_id, self._launch, columns, ranks, visits))

    def write_diagnosis(self, case: Case, rows: Sequence[object]) -> None:
        """The rows of all tables of a diagnosis; their class says the table."""
        for table in (TABLES[name] for name in HELD[CASES] if TABLES[name].needed == GROUP):
            own = [vars(row) | {"case_id": case.case_id} for row in rows if isinstance(row, table.row)]
            self.write(table.name, case.case_id, own)

    def write_probe(self, probe: str, asked: Sequence[Asked], seen: Sequence[Seen], part: str = "") -> None:
        """A probe's answers; `part`: those of one that is not finished, in files of that name."""
        for table in (TABLES[name] for name in HELD[PROBES] if name != PROBES):
            place = [
                {"probe": probe, "subject": subject, "rank": rank} | vars(row)
                for subject, rank, row in seen
                if isinstance(row, table.row)
            ]
            self.write(table.name, part or probe, place)
        self.write(PROBES, part or probe, asked)

    def write_part(self, probe: str, asked: Sequence[Asked], seen: Sequence[Seen]) -> None:
        """Answers of a probe that is not finished, beside those that are there."""
        self.write_probe(probe, asked, seen, self._run_dir.new_part(probe))

    def drop_parts(self, probe: str) -> None:
        """A finished probe has whole files."""
        self._run_dir.drop_parts(probe)

    def write_outcome(self, case: Case, outcome: Outcome) -> None:
        """The row that makes the case a finished one: outcome, axes and parameters."""
        row = {"launch": self._launch} | case.options | parameter_values(case, self._parameters) | vars(outcome)
        schema = schema_of(CASES, self._parameters)
        arrays = [
            self._axis(column, row[column]) if column in AXES else pa.array([row[column]], schema.field(column).type)
            for column in schema.names
        ]
        self._save(CASES, case.case_id, pa.Table.from_arrays(arrays, schema=schema))

    def renew_files(self) -> None:
        """Write the files of finished cases and probes again whose columns or types are not those of this version and run.

        A resumed run may have other parameters than it began with, or may have begun under another version; columns that only a
        later one declares are lost.
        """
        cases = {case.case_id: case for case in expand_cases(self._config)}
        for table in TABLES.values():
            names = cases if table.of == CASES else self._config.probe
            for launch, listed in self._run_dir.listed_by_launch(table.name).items():
                writer = Writer(self._run_dir, launch, self._config)
                for name in (name for name in names if file_name(name) in listed):
                    with suppress(NotWholeError):  # a damaged file is measured again, or named by the report
                        writer._renew(table.name, name, cases.get(name))

    def _renew(self, table: str, name: str, case: Case | None) -> None:
        """Write one file again if its schema differs. `case`: None if the file belongs to a probe."""
        file = self._run_dir.case_file(table, name, self._launch)
        if has_schema(file, schema_of(table, self._parameters)):
            return
        rows = read_rows(file, name, self._launch)
        if table == CASES and case:
            (row,) = rows.to_pylist()
            if any(row[axis] != option for axis, option in case.options.items()):
                return  # damaged, as `read_case` finds it: to write it again would hide that
            self.write_outcome(case, Outcome(**{each.name: row[each.name] for each in fields(Outcome)}))
        else:
            self._save(table, name, rows)

    def _axis(self, axis: str, option: str) -> pa.DictionaryArray:
        """An option, with all options of the configuration in their order: a reader of all files gets these as categories."""
        options = list(getattr(self._config, axis))
        return coded([options.index(option)], options)

    def _save(self, table: str, name: str, content: pa.Table) -> None:
        make_folder(self._run_dir.table(table), self._run_dir.path)  # a run of an earlier version may lack it
        with writing(self._run_dir.case_file(table, name, self._launch), self._run_dir.path) as file:
            pq.write_table(_shortened(content), file)


def _shortened(content: pa.Table) -> pa.Table:
    """Cut texts to the length that readers accept: the message of an error may be longer."""
    for place, field in enumerate(content.schema):
        if pa.types.is_string(field.type):
            text = pc.utf8_slice_codeunits(content.column(place), 0, LONGEST // 4)  # a character has 4 bytes at most
            content = content.set_column(place, field, text)
    return content


def sample_rows(
    case_id: str, launch: int, columns: Sequence[tuple[str, str]], ranks: Sequence[Tensor], visits: Sequence[tuple[int, int]]
) -> pa.Table:
    """Rows of `samples`, column by column, as there are many; see Writer.write_samples."""
    seconds = torch.stack(list(ranks))
    rank, iteration, column = (place.flatten() for place in torch.meshgrid(*map(torch.arange, seconds.shape), indexing="ij"))
    visit = torch.tensor([number for number, counts in enumerate(visits) for _ in range(sum(counts))])
    warm_up = torch.tensor([place < counts[0] for counts in visits for place in range(sum(counts))])
    phases, clocks = zip(*columns, strict=True)
    arrays = {
        "case_id": coded(torch.zeros(len(rank), dtype=torch.int32).numpy(), [case_id]),
        "launch": pa.repeat(pa.scalar(launch, pa.int64()), len(rank)),
        "rank": rank.numpy(),
        "visit": visit[iteration].numpy(),
        "iteration": iteration.numpy(),
        "warm_up": warm_up[iteration].numpy(),
        "phase": coded(column.int().numpy(), phases),
        "clock": coded(column.int().numpy(), clocks),
        "seconds": seconds.flatten().numpy(),
    }
    return pa.table(arrays, schema=schema_of("samples"))
