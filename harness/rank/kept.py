"""Answers of a probe that is not finished: written as they come, and read when the run goes on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import pyarrow as pa

from harness.rank.writer import Seen, Writer
from harness.schema.declare import PROBES, Table
from harness.schema.progress import read_parts
from harness.schema.record import OK, TABLES, Asked
from harness.schema.run_dir import RunDir

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
        for rows in read_parts(self.run_dir, self.probe):
            answered = [row for row in _asked(rows["probes"]) if row.status == OK]
            names = {row.subject for row in answered} - {row.subject for row in asked}
            asked += [row for row in answered if row.subject in names]
            for table in (name for name in rows if name != PROBES):
                seen += [row for row in _seen(rows[table], TABLES[table]) if row[0] in names]
        self._written = len(asked), len(seen)
        return asked, seen

    def write(self, asked: Sequence[Asked], seen: Sequence[Seen]) -> None:
        """Add a part with what is new, at most once in EVERY_S."""
        if time.monotonic() - self._at < EVERY_S:
            return
        before_asked, before_seen = self._written
        self.writer.write_part(self.probe, asked[before_asked:], seen[before_seen:])
        self._written, self._at = (len(asked), len(seen)), time.monotonic()


def _asked(rows: pa.Table) -> list[Asked]:
    return [Asked(**row) for row in rows.select([column.name for column in fields(Asked)]).to_pylist()]


def _seen(rows: pa.Table, table: Table) -> list[Seen]:
    found = rows.drop_columns(["probe"]).to_pylist()
    return [(row.pop("subject"), row.pop("rank"), table.row(**row)) for row in found]
