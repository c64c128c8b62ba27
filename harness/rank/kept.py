"""Answers of a probe that is not finished: written as they come, and read when the run goes on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from harness.rank.writer import Seen, Writer
from harness.schema.declare import PROBES, Table
from harness.schema.record import OK, TABLES, Asked
from harness.schema.run_dir import RunDir
from harness.schema.tables import part_files, read_rows, whole_parts

EVERY_S = 1.0
"""A part is written when the last one is so old: syncing it to the disk takes milliseconds, and a question may take less."""


@dataclass
class Kept:
    """The parts of one probe's rows. Rank 0 alone reads and writes them."""

    run_dir: RunDir
    probe: str
    writer: Writer
    _written: tuple[int, int] = (0, 0)
    """Numbers of answers, and of rows of what was seen, in the parts."""
    _at: float = field(default_factory=time.monotonic)

    def read(self) -> tuple[list[Asked], list[Seen]]:
        """Return the answers, and what was seen; a question that failed or was skipped is asked again."""
        asked, seen = list[Asked](), list[Seen]()
        for part in whole_parts(self.run_dir, self.probe):
            answered = [row for row in _rows(self.run_dir, "probes", part, self.probe, Asked) if row.status == OK]
            names = {row.subject for row in answered} - {row.subject for row in asked}
            asked += [row for row in answered if row.subject in names]
            for table in (TABLES[name] for name in part_files(self.run_dir, part) if name != PROBES):
                seen += [row for row in _seen(self.run_dir, table, part, self.probe) if row[0] in names]
        self._written = len(asked), len(seen)
        return asked, seen

    def write(self, asked: Sequence[Asked], seen: Sequence[Seen]) -> None:
        """Add a part with what is new, at most once in EVERY_S."""
        if time.monotonic() - self._at < EVERY_S:
            return
        before_asked, before_seen = self._written
        self.writer.write_part(self.probe, asked[before_asked:], seen[before_seen:])
        self._written, self._at = (len(asked), len(seen)), time.monotonic()


def _rows(run_dir: RunDir, table: str, part: str, probe: str, kind: type[Asked]) -> list[Asked]:
    columns = [column.name for column in fields(kind)]
    return [kind(**row) for row in read_rows(run_dir.case_file(table, part), probe).select(columns).to_pylist()]


def _seen(run_dir: RunDir, table: Table, part: str, probe: str) -> list[Seen]:
    rows = read_rows(run_dir.case_file(table.name, part), probe).drop_columns(["probe"]).to_pylist()
    return [(row.pop("subject"), row.pop("rank"), table.row(**row)) for row in rows]
