"""The text of --help: every key and every axis with its options, from where they are defined."""

from collections.abc import Iterable

from harness.schema.arguments import Arguments
from harness.schema.case import PROBE, TABLE
from harness.schema.config import BenchmarkConfig
from harness.schema.keys import Key, keys_of
from harness.schema.launcher import KINDS
from launch.flags import flag, flagged, metavar

USAGE = """\
reducebench: which gradient did the ranks really compute, what did it cost, and why does it differ?

  python -m launch [overrides]                             start the ranks, measure, report
  python -m launch --multirun torchrun.nproc_per_node=1,2  one run for each combination of values
  torchrun --nproc-per-node=4 -m harness [overrides]       the same run, its ranks started by you

  python -m launch [overrides] --base sync=[none] --new sync=[barrier] --gate time=5%
                                                           an A/B run: launches in turn, then the comparison

  python -m launch --resume RUN_DIR [overrides]            go on with a run: what is missing in it, or failed, and nothing else

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
    lines += ["", "Arguments of the command, which are not written to config.yaml:", *_arguments()]
    documented = [each for each in keys_of(BenchmarkConfig) if each.help]  # the axes stand above
    return "\n".join([*lines, "", "Keys:", *_lines(documented), *_launchers()]) + "\n"


def _arguments() -> list[str]:
    """Arguments of the command: those with a flag, then the keys of nccl_matrix."""
    flags = [f"  {flag(each.name) + metavar(each):<32} {each.help}" for each in flagged()]
    return [*flags, *_lines(each for each in keys_of(Arguments) if "." in each.name)]


def _launchers() -> list[str]:
    """Each one, and its keys, where other launchers' keys are refused."""
    lines = []
    for name, kind in KINDS.items():
        lines += ["", f"Keys of launch={name}: {' '.join((kind.__doc__ or '').split())}", *_lines(keys_of(kind, "launch."))]
    return lines


def _lines(keys: Iterable[Key]) -> list[str]:
    return [f"  {f'{each.name}={each.spelled}':<32} {each.help}".rstrip() for each in keys]
