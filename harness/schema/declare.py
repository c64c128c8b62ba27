"""Declarations of tables: the columns of a row class, and what reader, writer, report and documentation must know of a table.

`record.py` declares every table of a run directory. Nothing else lists tables or columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

CASES, PROBES = "cases", "probes"
"""Tables whose row makes a case, or a probe, a finished one; every other table belongs to one of them."""
MEASURED, GROUP, OPTIONAL = "measured", "group", "optional"
"""Values of `Table.needed`."""
_Row = TypeVar("_Row", bound=type)


@dataclass(frozen=True)
class Column:
    """A column. `kind` is str, int, float or bool; see harness.schema.arrow for the Arrow types."""

    text: str
    """Meaning, for docs/run_directory.md; columns that stand together and have the same text share a line."""
    unit: str = ""
    least: float | None = None
    """Smallest accepted number. NaN is accepted unless `finite`."""
    above: float | None = None
    """Accepted numbers are larger than this."""
    most: float | None = None
    finite: bool = False
    values: tuple[str, ...] = ()
    """Accepted texts; empty: all."""
    coded: bool = False
    """Text that Arrow keeps as a dictionary: few different texts in many rows."""
    since: str = ""
    """Version of reducebench that added the column to a table that files already had; a file without it has `default`."""
    formerly: str = ""
    """Name of the column in schema_version 4."""
    kind: type = str
    default: Any = None
    """None: the class declares none."""


column = Column
"""Reads as a verb in a declaration: `seconds: Annotated[float, column("Duration.", unit="s", least=0)]`."""


@dataclass(frozen=True)
class Table:
    """A table of the run directory: a folder, a class of its rows, a frame of `Run`."""

    name: str
    row: type
    of: str
    """CASES or PROBES."""
    a_row: str
    """Subject of a row, as in `one row per ...`."""
    columns: Mapping[str, Column]
    key: tuple[str, ...] = ()
    """Columns whose values together identify a row of a file; empty: no such columns."""
    needed: str = OPTIONAL
    """MEASURED: a file for each case with status ok; GROUP: a file where any other table of GROUP has one; OPTIONAL: neither.
    Every table of PROBES that is not OPTIONAL has a file for each finished probe."""
    needed_with: str = ""
    """Column of `cases`: a measured case with a number in it has a file. Earlier versions wrote neither column nor table."""
    most_rows: int = 2**20
    """Largest number of rows of a file: a small file can declare more than fit into memory."""
    large: bool = False
    """Rows are read at the first use of the frame, and file by file."""
    single: bool = False
    """A file has one row."""
    required: Mapping[str, str] = field(default_factory=dict)
    """Column to value: a file has a row with these."""
    check: Callable[[Any], None] | None = None
    """Further check of the rows (a pyarrow.Table); raises NotWholeError."""

    @property
    def launched(self) -> bool:
        """True if the rows have the number of their launch. Probes are asked in the first launch only."""
        return "launch" in self.columns


_declared: dict[str, Table] = {}
TABLES: Mapping[str, Table] = MappingProxyType(_declared)
"""Name to declaration, in the order of declaration; `cases` and `probes` stand before the tables that belong to them."""


def table(
    name: str, *, of: str, a_row: str, beside: Mapping[str, Column] = MappingProxyType({}), **settings: Any
) -> Callable[[_Row], _Row]:
    """Declare the table of a row class; `beside`: columns that the writer adds to those of the class; see Table for the rest.

    The first column is the first one of the class if that is `case_id`; those of `beside` come next.
    """

    def declare(row: _Row) -> _Row:
        own = columns_of(row)
        first = {column: own.pop(column) for column in list(own) if column == "case_id"}
        _declared[name] = Table(name, row, of, a_row, {**first, **beside, **own}, **settings)
        return row

    return declare


def columns_of(row: type) -> dict[str, Column]:
    """Columns that a row class declares, by name. Raise TypeError for a field without a declaration."""
    hints, defaults = get_type_hints(row, include_extras=True), {each.name: each.default for each in fields(row)}
    return {name: _column(row, name, hints[name], default) for name, default in defaults.items()}


def _column(row: type, name: str, hint: Any, default: Any) -> Column:
    kind, *declared = get_args(hint) if get_origin(hint) is Annotated else [hint]
    if kind not in (str, int, float, bool) or len(declared) != 1 or not isinstance(declared[0], Column):
        raise TypeError(f"{row.__name__}.{name}: expected Annotated[str, int, float or bool, column(...)]")
    if declared[0].since and default is MISSING:
        raise TypeError(f"{row.__name__}.{name}: a column that was added later needs a default")
    return replace(declared[0], kind=kind, default=None if default is MISSING else default)
