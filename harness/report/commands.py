"""The commands that judge: `compare` and `check`."""

import argparse
import sys
from functools import cache
from pathlib import Path

from rich.console import Console

from harness.report import compare_page
from harness.report.comparison import Comparison, check_across
from harness.report.comparison import compare as hold_against
from harness.report.failures import damaged_table
from harness.report.frame import load_run
from harness.report.gate_files import junit, summary, write_files
from harness.report.gates import BROKEN, Judged, judge_comparison, judge_run, parse_gate, parse_limit, parse_share
from harness.report.sides import DISCREPANCY, MEMORY, TIME, load_side
from harness.report.tables import csv
from harness.report.timing import timing
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.text import plain

_UNBOUNDED = 1000
"""Columns where no terminal bounds them."""


def compare(arguments: argparse.Namespace) -> int:
    """Print a comparison and write it to the report of the last new run. 1 when a gate is broken. Raises RefusedError."""
    gates = [parse_gate(text) for text in arguments.gate]
    margin = parse_share("--margin", arguments.margin)
    base_paths, new_paths = _sides(arguments)
    load = cache(load_run)  # --aa may name a run of a side
    base, new = (load_side(paths, arguments.across, load) for paths in (base_paths, new_paths))
    again = load_side(arguments.aa, arguments.across, load) if arguments.aa else None
    if arguments.across:
        check_across(arguments.across, base, new)
    phases = arguments.phases or any(gate.metric.startswith(f"{TIME}.") for gate in gates)
    compared = hold_against(base, new, again, margin=margin, phases=phases)
    judged = judge_comparison(gates, compared)
    lines, tables = compare_page.headlines(compared, judged), list(compare_page.tables(compared, judged))
    damaged = [run for side in (base, new) for run in side.runs if run.damaged]
    tables += [damaged_table(damaged)] if damaged else []
    files = {
        "compare.md": (None, compare_page.page(_title(compared), lines, tables)),
        "compare.csv": (None, csv(compare_page.long_frame(compared))),
        "compare.json": (arguments.json, summary(judged, **_told(compared, margin))),
    }
    run_dir = RunDir(new.runs[-1].path)
    write_files(run_dir, files | ({"compare.xml": (arguments.junit, junit(judged))} if gates else {}))
    compare_page.show(lines, tables, _console())
    print(plain(str(run_dir.report / "compare.md")))
    return max(_status(judged), int(bool(damaged)))


def check(arguments: argparse.Namespace) -> int:
    """Hold one run against limits. 1 when one is broken, or a case has no numbers. Raises RefusedError."""
    asked = (
        (DISCREPANCY, "--max-relative-l2", arguments.max_relative_l2, 1.0),
        (TIME, "--max-step-ms", arguments.max_step_ms, 1e-3),
        (MEMORY, "--max-memory-mib", arguments.max_memory_mib, 2.0**20),
    )
    limits = {metric: parse_limit(name, text) * unit for metric, name, text, unit in asked if text is not None}
    if not limits:
        raise RefusedError(f"check: no limit given; expected {', '.join(name for _, name, _, _ in asked)}")
    run = load_run(arguments.run)
    judged = judge_run(run, timing(run), limits)
    if not judged:
        raise RefusedError(f"{run.path} has measured no case")
    files = {"check.json": (arguments.json, summary(judged, run=str(run.path))), "check.xml": (arguments.junit, junit(judged))}
    write_files(RunDir(run.path), files)
    tables = [compare_page.gate_table(judged), *([damaged_table([run])] if run.damaged else [])]
    compare_page.show([compare_page.counted(judged)], tables, _console())
    return _status(judged)


def _sides(arguments: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    base, new, pair = arguments.base, arguments.new, arguments.pair
    if len(pair) == 2 and not base and not new:
        return [pair[0]], [pair[1]]
    if not pair and base and new:
        return base, new
    raise RefusedError("compare: expected two runs, BASE NEW, or --base RUN... --new RUN...")


def _title(compared: Comparison) -> str:
    sides = (", ".join(f"{run.config.name}/{run.path.name}" for run in side.runs) for side in (compared.new, compared.base))
    return " against ".join(sides)


def _told(compared: Comparison, margin: float) -> dict[str, object]:
    rows = compare_page.long_frame(compared)
    return {
        "base": [str(run.path) for run in compared.base.runs],
        "new": [str(run.path) for run in compared.new.runs],
        "margin": margin,
        "compared": rows.astype(object).to_dict("records"),
        "not_compared": compared.cases.loc[list(compared.apart)].assign(why=list(compared.apart.values())).to_dict("records"),
        "differences": compared.differences.to_dict("records"),
    }


def _status(judged: list[Judged]) -> int:
    return int(any(one.outcome == BROKEN for one in judged))


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED)
