"""Write the tables of docs/run_directory.md, and the golden file of the schemas: `python -m tests.run_directory`."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from harness.schema.arrow import schema_of, type_of, words_of
from harness.schema.case import AXES
from harness.schema.declare import CASES, GROUP, MEASURED, PROBES, Column, Table
from harness.schema.record import SCHEMA_VERSION, TABLES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "run_directory.md"
GOLDEN = ROOT / "tests" / "harness" / "schema" / f"golden_v{SCHEMA_VERSION}.json"
"""Schemas of the current version; those of former versions stay, for the tests of the reader."""
BEGIN, END = "<!-- tables: written by python -m tests.run_directory -->", "<!-- end of tables -->"


def page(text: str) -> str:
    """Return the page with its tables as they are declared; what stands outside of the two marks is kept."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n\n" + "\n".join(_tables()) + "\n" + END + after


def golden() -> str:
    """Return the golden file: table to column to Arrow type, without the parameters of options."""
    schemas = {name: {field.name: str(field.type) for field in schema_of(name)} for name in TABLES}
    return json.dumps(schemas, indent=1) + "\n"


def _tables() -> Iterator[str]:
    yield from ("| table | one row per | files |", "| --- | --- | --- |")
    yield from (f"| [`{table.name}`](#{table.name}) | {table.a_row} | {_files(table)} |" for table in TABLES.values())
    for table in TABLES.values():
        key = f" Key of a file: {', '.join(f'`{name}`' for name in table.key)}." if table.key else ""
        yield from ("", f"### {table.name}", "", f"One row per {table.a_row}.{key}", "")
        yield from ("| column | type | unit | meaning |", "| --- | --- | --- | --- |")
        yield from _lines(table)


def _files(table: Table) -> str:
    if table.name in (CASES, PROBES):
        return "each finished case" if table.name == CASES else "each finished probe"
    if table.of == PROBES:
        return "each finished probe" if table.needed == MEASURED else "some probes"
    if table.needed_with:
        return f"each measured case whose `{table.needed_with}` is a number"
    return {MEASURED: "each measured case", GROUP: "each diagnosed case"}.get(
        table.needed, "measured cases that have such rows"
    )


def _lines(table: Table) -> Iterator[str]:
    """One line for all columns that stand together and say the same."""
    for column, names in groupby(table.columns, key=lambda name: _words(table.columns[name])):
        listed = list(names)
        yield f"| {', '.join(f'`{name}`' for name in listed)} | {' | '.join(column)} |"
        if table.name == CASES and set(listed) & set(AXES):
            yield "| `<axis>.<option>.<parameter>` | see below | | Parameters of the options: equal columns in all files. |"


def _words(column: Column) -> tuple[str, str, str]:
    since = f" Since {column.since}." if column.since else ""
    formerly = f" `{column.formerly}` in version 4." if column.formerly else ""
    kind = f"{words_of(column)}, coded" if column.coded else str(type_of(column))
    return kind, column.unit, f"{column.text}{since}{formerly}".replace("|", "\\|")  # a bar ends a cell


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    GOLDEN.write_text(golden())
