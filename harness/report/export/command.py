"""`python -m harness.report export tensorboard|mlflow RUN`."""

import importlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import ModuleType

from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.text import plain

_MLFLOW = "mlflow"
_TO = {"tensorboard": "a folder; default: RUN/report/tensorboard", _MLFLOW: "tracking URI; default: MLflow's own"}
"""What can be exported to, and where to."""


def add_arguments(parser: ArgumentParser) -> None:
    """Of the subcommand; what it needs is imported when it runs."""
    kinds = parser.add_subparsers(required=True, dest="kind")
    for kind, to in _TO.items():
        one = kinds.add_parser(kind, help=f"seconds by iteration, settings and figures, for {kind}; needs the extra {kind}")
        one.add_argument("run", type=Path, metavar="RUN", help="results/<name>/<timestamp>, or results/<name>/latest")
        one.add_argument("--to", help=to)
        if kind == _MLFLOW:
            one.add_argument("--experiment", help="default: reducebench/<name of the run>")


def export(arguments: Namespace) -> int:
    """Exit status: 0, or 1 if a file of the run is damaged and only the other files are exported.

    Raises RefusedError if RUN is not a run directory, if the extra is not installed, or if nothing can be written to `--to`.
    """
    run_dir = RunDir.open(arguments.run)
    module = _module(arguments.kind)
    from harness.report.frame import load_run  # pandas: not for --help

    experiment = {"experiment": arguments.experiment} if arguments.kind == _MLFLOW else {}
    run = load_run(run_dir.path)
    print(plain(module.export(run, arguments.to, **experiment)))
    if run.damaged:
        print("Files that are not whole, and are not exported:", *map(plain, run.damaged), sep="\n  ")
    return int(bool(run.damaged))


def _module(kind: str) -> ModuleType:
    try:
        return importlib.import_module(f"harness.report.export.to_{kind}")
    except ModuleNotFoundError as error:
        raise RefusedError(f"export {kind} needs more packages: pip install 'reducebench[{kind}]' ({error})") from error
