"""Lines of harness/ and launch/ that tests execute, as a Markdown table, and the losses from one such table to another.

`python -m tests.mutants.coverage_table FOLDER` prints the table of the coverage data in FOLDER.
`python -m tests.mutants.coverage_table BEFORE.md AFTER.md` prints the files that have lost more than 2 points.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from coverage import Coverage

_POINTS = 2.0
_HEAD = ("| file | executed | statements | percent |", "| --- | ---: | ---: | ---: |")


def table(folder: Path) -> str:
    """Return the table for `folder/.coverage`, or for all `folder/.coverage.*` where they are not combined yet."""
    with TemporaryDirectory() as scratch:
        combined = folder / ".coverage"
        coverage = Coverage(data_file=combined if combined.exists() else Path(scratch) / ".coverage", config_file=False)
        if combined.exists():
            coverage.load()
        else:
            coverage.combine([str(folder)], keep=True)
        files = sorted(coverage.get_data().measured_files())
        root = os.path.commonpath(files)
        rows = []
        for file in files:
            _, statements, _, missing, _ = coverage.analysis2(file)
            rows.append((os.path.relpath(file, root), len(statements) - len(missing), len(statements)))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return "\n".join(
        [*_HEAD, *(f"| {name} | {executed} | {of} | {_percent(executed, of):.1f} |" for name, executed, of in rows)]
    )


def _percent(executed: int, statements: int) -> float:
    return 100 * executed / statements if statements else 100.0


def losses(before: Path, after: Path) -> list[str]:
    """Return a line for each file that has lost more than 2 points, and for each that stands in one table only."""
    old, new = _percents(before), _percents(after)
    lost = [
        f"{name}: {old[name]} % before, {new[name]} % after" for name in old if name in new and old[name] - new[name] > _POINTS
    ]
    return [*lost, *(f"{name}: only {'before' if name in old else 'after'}" for name in sorted(old.keys() ^ new.keys()))]


def _percents(path: Path) -> dict[str, float]:
    rows = [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: float(row[3]) for row in rows if row[1].isdecimal()}


def main(arguments: list[str]) -> int:
    paths = [Path(argument) for argument in arguments]
    if len(paths) == 1 and paths[0].is_dir():
        print(table(paths[0]))
    elif len(paths) == 2 and all(path.is_file() for path in paths):
        print("\n".join(losses(*paths)) or f"no file has lost more than {_POINTS:.0f} points")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
