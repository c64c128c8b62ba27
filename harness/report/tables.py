"""Tables of text, for a terminal and for Markdown."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from harness.schema.text import plain

_WIDE = 10_000
_PADDING = 3
"""Characters between two columns."""
_MEANT = re.compile(r"[\\`*\[\]<>|#&]|(?<![^\W_])_|_(?![^\W_])")
"""What means something to Markdown or HTML; an underscore inside a word does not."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


@dataclass(frozen=True)
class Table:
    """A titled table whose cells are texts; `note` says how to read it."""

    title: str
    rows: pd.DataFrame
    note: str = ""

    def print(self, console: Console) -> None:
        """For a terminal."""
        console.print(Text(f"\n{plain(self.title)}", style="bold"))
        if self.note:
            console.print(Text(plain(self.note), style="dim"))
        console.print(self._rich(box.SIMPLE_HEAD, plain, self._widths(console.width)))

    def markdown(self) -> str:
        """For a Markdown page."""
        buffer = io.StringIO()
        Console(file=buffer, width=_WIDE, color_system=None).print(self._rich(box.MARKDOWN, escape))
        lines = (line.strip() for line in buffer.getvalue().splitlines())
        note = f"{escape(self.note)}\n\n" if self.note else ""
        return f"## {escape(self.title)}\n\n{note}" + "\n".join(line for line in lines if line) + "\n"

    def _widths(self, width: int) -> list[int | None]:
        """Room for every whole word, and what is left in equal shares; None where words must be folded."""
        cells = [[plain(str(cell)) for cell in (name, *self.rows[name])] for name in self.rows.columns]
        widths = [max(len(word) for cell in column for word in (cell.split() or [""])) for column in cells]
        left = width - sum(widths) - _PADDING * len(widths) + 1
        if left < 0:
            return [None] * len(widths)
        needs = sorted((max(map(len, column)), place) for place, column in enumerate(cells))
        for served, (need, place) in enumerate(needs):
            more = min(left // (len(needs) - served), need - widths[place])
            widths[place], left = widths[place] + more, left - more
        return list(widths)

    def _rich(self, style: box.Box, clean: Callable[[str], str], widths: Sequence[int | None] | None = None) -> RichTable:
        table = RichTable(box=style, pad_edge=style is box.MARKDOWN)
        for name, width in zip(self.rows.columns, widths or [None] * len(self.rows.columns), strict=True):
            table.add_column(Text(clean(str(name))), overflow="fold", justify=_justify(self.rows[name]), width=width)
        for row in self.rows.itertuples(index=False):
            table.add_row(*(Text(clean(str(cell))) for cell in row))
        return table


def csv(frame: pd.DataFrame) -> bytes:
    """CSV of a frame, without control characters in the names and texts of the run: a terminal may show the CSV."""
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    cleaned = {name: frame[name].astype(object).map(_clean) for name in texts}
    text: str = frame.assign(**cleaned).rename(columns=_clean).to_csv(index=False)
    return text.encode()


def _clean(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


def escape(text: str) -> str:
    """Without a meaning for Markdown or HTML: names and texts of a run come from outside."""
    return _MEANT.sub(lambda found: _ENTITIES.get(found.group(), f"\\{found.group()}"), plain(text))


def _justify(column: pd.Series) -> Literal["left", "right"]:
    numeric = column.astype(str).str.fullmatch(r"-?[\d.(][^a-df-z]*|NaN|inf|").all()
    return "right" if numeric else "left"
