"""One line on long work: case i of n, which one, and the time that is left. Silent when nobody watches."""

from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from harness.schema.text import plain


class ProgressLine:
    """Shows itself on `terminal`, by default standard error. No thread of its own: it is drawn when it is told something."""

    def __init__(self, total: int, terminal: TextIO | None = None) -> None:
        self.total = total
        columns = (TextColumn("case"), MofNCompleteColumn(), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
        console = Console(file=terminal, stderr=terminal is None)
        hidden = not console.is_terminal
        self._progress = Progress(
            *columns, TextColumn("{task.description}"), console=console, auto_refresh=False, transient=True, disable=hidden
        )
        self._task: TaskID = self._progress.add_task("starting the ranks", total=total)

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, done: int, total: int, case_id: str) -> None:
        """So many cases are finished, and this one is at work."""
        between = "starting the ranks" if done < total else "ending the ranks"
        self._progress.update(self._task, completed=done, total=total, description=escape(plain(case_id)) or between)
        self._progress.refresh()
