"""`python -m harness.report show RUN`, console script `reducebench-report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.report.export.command import add_arguments as add_export_arguments
from harness.report.export.command import export as run_export
from harness.schema.refusal import RefusedError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: every case is ok or skipped; 1: one failed or is missing; 2: RUN is no run directory."""
    parser = argparse.ArgumentParser(prog="python -m harness.report", description="Read run directories.")
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser("show", help="print the report of a run, or of several side by side; write it to RUN/report/")
    show.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="results/<name>/<timestamp>, or results/<name>/latest")
    show.set_defaults(run_command=lambda arguments: _show(arguments.runs))
    export = commands.add_parser("export", help="hand a run to TensorBoard or MLflow")
    add_export_arguments(export)
    export.set_defaults(run_command=run_export)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run_command(arguments))
    except RefusedError as error:
        print(f"reducebench-report: {error}", file=sys.stderr)
        return 2


def _show(runs: list[Path]) -> int:
    from harness.report.render import show  # pandas: not for --help

    return int(show(runs))


if __name__ == "__main__":
    sys.exit(main())
