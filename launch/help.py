"""The text of --help: every key and every axis with its options, from where they are defined."""

import ast
import inspect
import itertools
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from harness.schema import config as config_module
from harness.schema.case import AXES, PROBE
from harness.schema.config import BenchmarkConfig, DriftConfig, TorchrunConfig, UntilConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

USAGE = """\
reducebench: which gradient did the ranks really compute, what did it cost, and why does it differ?

  python -m launch [overrides]                             start the ranks, measure, report
  python -m launch --multirun torchrun.nproc_per_node=1,2  one run for each combination of values
  torchrun --nproc-per-node=4 -m harness [overrides]       the same run, its ranks started by you

  python -m launch [overrides] --base sync=[none] --new sync=[barrier] --gate time=5%
                                                           an A/B run: launches in turn, then the comparison

  --config-dir DIR   options and classes of your own      --cfg       print the composed configuration, run nothing
  --multirun, -m     sweep over key=a,b                   --version   print the version
"""


def help_text(options: dict[str, list[str]]) -> str:
    """All of --help; `options` are the axes', and experiment's, that can be selected."""
    lines = [USAGE, "Axes, each a list of options: reduction=[none,sum]. All combinations run."]
    width = max(map(len, options))
    lines += [f"  {axis:<{width}}  {', '.join(options[axis])}" for axis in AXES]
    lines += ["", f"  {PROBE:<{width}}  {', '.join(options[PROBE])}: questions put to the machine, beside the cases"]
    lines += [f"  {'experiment':<{width}}  {', '.join(options['experiment'])}: a named recipe", "", "Keys:"]
    return "\n".join(lines + _keys()) + "\n"


def _keys() -> list[str]:
    documented = [("", BenchmarkConfig), ("torchrun.", TorchrunConfig), ("drift.", DriftConfig), ("until.", UntilConfig)]
    return [
        f"  {prefix + name + '=' + default:<32} {doc}"
        for prefix, kind in documented
        for name, default, doc in _documented(kind)
    ]


def _documented(kind: "type[DataclassInstance]") -> list[tuple[str, str, str]]:
    docs = _attribute_docs(kind.__name__)
    return [(field.name, _default(field), docs[field.name]) for field in fields(kind) if field.name in docs]


def _default(field: "Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return str(field.default_factory())
    return "null" if field.default is None else str(field.default)


def _attribute_docs(name: str) -> dict[str, str]:
    """Field to the string that follows it."""
    tree = ast.parse(inspect.getsource(config_module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
