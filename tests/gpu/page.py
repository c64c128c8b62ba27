"""Tables for docs/gpu.md, in Markdown, from what first_contact.sh leaves: `python -m tests.gpu.page OUT`

Whatever a folder lacks is left out. The tables contain no names of hosts or users.
"""

import ast
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from harness.report.frame import Run, load_run
from harness.report.tables import Table
from harness.schema.record import REFERENCE
from tests.rehearsal import SKIPPED

_STEP = re.compile(r"^(\S+) +(rc=\d+|done|skipped|no time|\d+ GPUs) +(\d+)s  t=\d+s$", re.MULTILINE)
_TIMES = re.compile(r"^(?:TIMES|FREE W=1) (.+?) (\{.*\})$", re.MULTILINE)
_CLAIM = re.compile(r"^CLAIM (\w+)(?: \[[\d.]+ s\])?: (.*?)(?: \[[\d.]+ s\])?$", re.MULTILINE)
_WORLD = re.compile(r"\[((?:nccl|gloo)-\d+)\]")
_CALL = {
    "host, launch alone": "host, launch alone",
    "events, idle device": "idle",
    "events, device held first": "queued",
    "graph of 20 calls, each": "graph, each",
}
_STATUS = {"rc=0": "passed", "rc=124": "time limit", "done": "passed"}
_LONG = 160


@dataclass(frozen=True)
class Outcome:
    """A test, in one of the worlds that it runs in."""

    test: str
    world: str
    outcome: str
    seconds: float
    message: str
    skipped_lines: tuple[str, ...]


def main(out: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder)
        for archive in sorted(out.glob("*.tar.gz")):
            with tarfile.open(archive) as packed:
                files = [member for member in packed if member.isfile() or member.isdir()]
                packed.extractall(unpacked, files, filter="data")
        for table in tables(out, unpacked):
            print(table)
    return 0


def tables(out: Path, unpacked: Path) -> Iterator[str]:
    """Yield each table that is not empty."""
    runs = dict(_runs(unpacked / "results"))
    reports = sorted(path for path in (unpacked / "tests").glob("*.xml") if path.stem != "cpu_suite")
    outcomes = [outcome for path in reports for outcome in read_junit(path)]
    summary = _read(out / "summary.txt")
    logs = "\n".join([*(_read(path) for path in sorted((unpacked / "logs").glob("*.log"))), _read(out / "claims.txt")])
    found = {
        "Machine": machine(runs.values()),
        "What ran": tests_by_world(outcomes),
        "Failures": failures(outcomes, summary),
        "Steps": steps(summary),
        "Runs": measured(runs),
        "Launch-bound and launch-free, us": launch_table(logs),
        "Claims that were checked": claims(logs),
        "1.0e9 parameters": billion(runs.get("billion")),
        "Lines that a rehearsal skipped": skipped_lines(outcomes),
    }
    yield from (markdown(title, table) for title, table in found.items() if len(table))


def markdown(title: str, table: pd.DataFrame) -> str:
    """Return a titled table in Markdown; a cell is one line, and not longer than _LONG characters."""
    return f"#{Table(title, table.fillna('').map(_cell)).markdown()}"


def _cell(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def _runs(results: Path) -> Iterator[tuple[str, Run]]:
    """Yield the last run of each name; one that cannot be read is named on standard error."""
    for folder in sorted(results.glob("*")):
        paths = sorted(path for path in folder.glob("*") if path.is_dir() and not path.is_symlink())
        if paths:
            try:
                yield folder.name, load_run(paths[-1])
            except Exception as error:  # a run that was cut short
                print(f"{folder.name}: not read: {error}", file=sys.stderr)


def read_junit(path: Path) -> Iterator[Outcome]:
    """Yield the tests of a JUnit XML file."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError:
        return
    for case in root.iter("testcase"):
        name = case.get("name", "")
        world = _WORLD.search(name)
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        lines = tuple(item.get("value", "") for item in case.iter("property") if item.get("name") == SKIPPED)
        outcome = "passed" if found is None else {"failure": "failed"}.get(found.tag, found.tag)
        message = "" if found is None else found.get("message", "")
        test = _WORLD.sub("", name)
        yield Outcome(test, world[1] if world else "any", outcome, float(case.get("time", 0)), message, lines)


def machine(runs: Iterable[Run]) -> pd.DataFrame:
    """Return date, device and versions of the first run."""
    run = next((run for run in runs if run.environment), None)
    if run is None:
        return pd.DataFrame()
    versions, ranks = run.environment.get("versions", {}), run.environment.get("ranks", [])
    names = pd.Series([rank.get("device_name") or "CPU" for rank in ranks], dtype=object).value_counts()
    facts = {
        "date": run.path.resolve().name.partition("_")[0],
        "device": ", ".join(f"{count} x {name}" for name, count in names.items()),
        "driver": next((rank.get("driver") for rank in ranks), None),
        **{name: versions.get(name) for name in ("reducebench", "python", "torch", "cuda", "nccl", "cudnn")},
        "commit": f"{str(run.environment.get('commit'))[:12]}{' with changes' if run.environment.get('dirty') else ''}",
    }
    return pd.DataFrame(facts.items(), columns=["fact", "value"])


def tests_by_world(outcomes: list[Outcome]) -> pd.DataFrame:
    """Return a row for each test, and a column for each world."""
    if not outcomes:
        return pd.DataFrame()
    frame = pd.DataFrame(outcomes).assign(cell=[f"{one.outcome}, {one.seconds:.0f} s" for one in outcomes])
    shown = frame.pivot_table(index="test", columns="world", values="cell", aggfunc="; ".join, sort=False).fillna("")
    return shown.reset_index()


def failures(outcomes: list[Outcome], summary: str) -> pd.DataFrame:
    """Return what failed: tests by name, and steps with their exit status."""
    failed = [one for one in outcomes if one.outcome in ("failed", "error")]
    rows = [(f"{one.test} {one.world}", one.message) for one in failed]
    rows += [(name, _STATUS.get(status, status)) for name, status, _ in steps_of(summary) if status not in _PASSED]
    return pd.DataFrame(rows, columns=["what", "how"])


_PASSED = {"rc=0", "done", "skipped"}


def steps(summary: str) -> pd.DataFrame:
    """Return the steps with what became of them."""
    rows = [(name, _STATUS.get(status, status), int(seconds)) for name, status, seconds in steps_of(summary)]
    return pd.DataFrame(rows, columns=["step", "outcome", "s"])


def steps_of(summary: str) -> list[tuple[str, str, str]]:
    """Return name, status and seconds of each step that measures something."""
    return [step for step in _STEP.findall(summary) if step[0] not in ("setup", "facts")]


def measured(runs: dict[str, Run]) -> pd.DataFrame:
    """Return the cases of each run: how many are finished, failed and skipped, and the largest distance from float64."""
    rows = []
    for name, run in runs.items():
        counts = run.cases.status.astype(str).value_counts()
        whole = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
        environment = run.environment
        rows.append(
            {
                "run": name,
                "backend, ranks": f"{environment.get('backend')}, {environment.get('world_size')}",
                **{status: int(counts.get(status, 0)) for status in ("ok", "failed", "skipped")},
                "largest relative L2": f"{whole.relative_l2.max():.1e}" if len(whole) else "",
            }
        )
    return pd.DataFrame(rows)


def launch_table(logs: str) -> pd.DataFrame:
    """Return microseconds of each call."""
    rows = []
    for name, figures in _TIMES.findall(logs):
        values = ast.literal_eval(figures.replace("nan", "None"))
        rows.append({"call": name, **{title: values[key] for key, title in _CALL.items() if key in values}})
    return pd.DataFrame(rows).drop_duplicates("call") if rows else pd.DataFrame()


def claims(logs: str) -> pd.DataFrame:
    """Return each claim with what was found."""
    return pd.DataFrame(_CLAIM.findall(logs), columns=["claim", "found"]).drop_duplicates("claim")


def billion(run: Run | None) -> pd.DataFrame:
    """Return the figures of the model of 1e9 parameters."""
    if run is None or not (run.cases.status == "ok").any():
        return pd.DataFrame()
    case = run.cases[run.cases.status == "ok"].iloc[0]
    samples = run.samples_of(case.case_id)
    clock = "cuda_event" if "cuda_event" in set(samples["clock"].astype(str)) else "host"
    phases = samples[samples["clock"].astype(str) == clock].groupby("phase", observed=True).seconds.median() * 1e3
    whole = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
    figures = {
        "parameters": f"{case.num_parameters:,}",
        "backend, ranks": f"{case.backend}, {case.world_size}",
        "case, s": f"{case.wall_s:.0f} (reference {case.reference_s:.0f}, comparison {case.compare_s:.0f})",
        "peak allocated, GB": f"{case.peak_memory_bytes / 1e9:.1f}",
        "above the bare step, MB": f"{case.above_baseline_bytes / 1e6:.0f}",
        **{f"{phase}, ms ({clock})": f"{value:.3g}" for phase, value in phases.items()},
        "relative L2 from float64": f"{whole.relative_l2.max():.1e}",
    }
    return pd.DataFrame(figures.items(), columns=["figure", "value"])


def skipped_lines(outcomes: list[Outcome]) -> pd.DataFrame:
    """Return the lines that a rehearsal left out, for each test."""
    rows = [(f"{one.test} {one.world}", line) for one in outcomes for line in one.skipped_lines]
    return pd.DataFrame(rows, columns=["test", "line"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
