"""`python -m harness.report show RUN`, console script `reducebench-report`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.report.export.command import add_arguments as add_export_arguments
from harness.report.export.command import export as run_export
from harness.schema.refusal import RefusedError
from harness.schema.terminal import reader_may_leave
from harness.schema.text import message_lines


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: all is well; 1: a case failed or is missing, or a gate is broken; 2: what was asked for cannot be done."""
    with reader_may_leave():
        arguments = _parser().parse_args(argv)
        try:
            return int(arguments.command(arguments))
        except RefusedError as error:
            print(f"reducebench-report: {message_lines(str(error))}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"reducebench-report: cannot write: {message_lines(str(error))}", file=sys.stderr)
            return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.report", description="Read run directories.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser("show", help="print the report of a run, or of several side by side; write it to RUN/report/")
    show.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="results/<name>/<timestamp>, or results/<name>/latest")
    show.set_defaults(command=_show)
    _add_compare(commands.add_parser("compare", help="hold runs against runs: ratios, intervals, verdicts, gates"))
    _add_check(commands.add_parser("check", help="hold one run against limits"))
    export = commands.add_parser("export", help="hand a run to TensorBoard or MLflow")
    add_export_arguments(export)
    export.set_defaults(command=run_export)
    return parser


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.add_argument("pair", type=Path, nargs="*", metavar="BASE NEW", help="short for --base BASE --new NEW")
    for name, said in (
        ("base", "the runs of one side"),
        ("new", "of the other"),
        ("aa", "of one configuration, for their spread"),
    ):
        compare.add_argument(f"--{name}", type=Path, nargs="+", default=[], metavar="RUN", help=said)
    compare.add_argument("--across", default="", metavar="AXIS", help="compare cases that differ on this axis")
    compare.add_argument("--margin", default="10%", metavar="PERCENT", help="within it, a ratio counts as 1 (10%%)")
    compare.add_argument("--phases", action="store_true", help="compare every phase of the step too")
    compare.add_argument(
        "--gate", action="append", default=[], metavar="METRIC=LIMIT", help="as time=5%%, relative_l2=2x, memory=10%%"
    )
    _add_files(compare)
    compare.set_defaults(command=_compare)


def _add_check(check: argparse.ArgumentParser) -> None:
    check.add_argument("run", type=Path, metavar="RUN")
    check.add_argument("--max-relative-l2", metavar="X", help="distance from the float64 reference, of every case")
    check.add_argument("--max-step-ms", metavar="X", help="median step of the slowest rank")
    check.add_argument("--max-memory-mib", metavar="X", help="peak of the rank that takes the most")
    _add_files(check)
    check.set_defaults(command=_check)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there, not to report/")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the JUnit file there, not to report/")


def _show(arguments: argparse.Namespace) -> int:
    from harness.report.render import show  # pandas: not for --help

    return int(show(arguments.runs))


def _compare(arguments: argparse.Namespace) -> int:
    from harness.report.commands import compare

    return compare(arguments)


def _check(arguments: argparse.Namespace) -> int:
    from harness.report.commands import check

    return check(arguments)


if __name__ == "__main__":
    sys.exit(main())
