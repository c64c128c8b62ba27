"""The text of --help: every key and every axis with its options, from where they are defined."""

import ast
import inspect
import itertools
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from harness.schema.case import PROBE, TABLE
from harness.schema.config import BenchmarkConfig, DriftConfig, NcclMatrixConfig, TorchrunConfig, UntilConfig
from harness.schema.launcher import KINDS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

USAGE = """\
reducebench: which gradient did the ranks really compute, what did it cost, and why does it differ?

  python -m launch [overrides]                             start the ranks, measure, report
  python -m launch --multirun torchrun.nproc_per_node=1,2  one run for each combination of values
  torchrun --nproc-per-node=4 -m harness [overrides]       the same run, its ranks started by you

  python -m launch [overrides] --base sync=[none] --new sync=[barrier] --gate time=5%
                                                           an A/B run: launches in turn, then the comparison

  python -m launch resume=RUN_DIR [overrides]              go on with a run: what is missing in it, or failed, and nothing
                                                           else; accept_changes=true: although its environment has changed;
                                                           dry_run=true: show what its configuration would execute here

  --config-dir DIR   options and classes of your own      --cfg       print the composed configuration, run nothing
  --multirun, -m     sweep over key=a,b                   --version   print the version
"""


def help_text(options: dict[str, list[str]]) -> str:
    """All of --help; `options` are those of the axes and of the other groups."""
    lines = [USAGE, "Axes, each a list of options: reduction=[none,sum]. All combinations run."]
    width = max(map(len, options))
    lines += [f"  {name:<{width}}  {', '.join(options[name])}: {axis.help}" for name, axis in TABLE.items()]
    lines += ["", f"  {PROBE:<{width}}  {', '.join(options[PROBE])}: questions put to the machine, beside the cases"]
    lines += [f"  {'experiment':<{width}}  {', '.join(options['experiment'])}: a named recipe"]
    lines += [f"  {'launch':<{width}}  {', '.join(options['launch'])}: what starts the ranks; its keys stand last"]
    return "\n".join([*lines, "", "Keys:", *_keys(), *_launchers()]) + "\n"


def _keys() -> list[str]:
    documented = [
        *(("", BenchmarkConfig), ("torchrun.", TorchrunConfig), ("drift.", DriftConfig), ("until.", UntilConfig)),
        ("nccl_matrix.", NcclMatrixConfig),
    ]
    return [line for prefix, kind in documented for line in _lines(prefix, _documented(kind))]


def _launchers() -> list[str]:
    """Each one, and its keys, where other launchers' keys are refused."""
    lines = []
    for name, kind in KINDS.items():
        lines += ["", f"Keys of launch={name}: {' '.join((kind.__doc__ or '').split())}", *_lines("launch.", _all(kind))]
    return lines


def _lines(prefix: str, keys: list[tuple[str, str, str]]) -> list[str]:
    return [f"  {prefix + name + '=' + default:<32} {doc}".rstrip() for name, default, doc in keys]


def _documented(kind: "type[DataclassInstance]") -> list[tuple[str, str, str]]:
    """A field without a docstring is an axis, which stands elsewhere on the page."""
    return [key for key in _all(kind) if key[2]]


def _all(kind: "type[DataclassInstance]") -> list[tuple[str, str, str]]:
    """Name, default and docstring of each field."""
    docs = _attribute_docs(kind)
    return [(field.name, _default(field), docs.get(field.name, "")) for field in fields(kind)]


def _default(field: "Field[Any]") -> str:
    """As it is written on a command line."""
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)


def _attribute_docs(kind: type) -> dict[str, str]:
    """Field to the string that follows it."""
    body = next(node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
