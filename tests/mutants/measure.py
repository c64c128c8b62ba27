"""One clean run of `make test` under coverage: the tests that execute a function, and the cost of each test."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from coverage import Coverage, CoverageData

from tests.mutants.apply import PACKAGES, copy_tree, environment, find
from tests.mutants.observe import bare
from tests.mutants.planted import Mutant

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "tests.mutants.observe", "-p", "no:cacheprovider", "-m", "not full")
_TWO = ("--numprocesses=2", "--dist=loadgroup", "--no-loadscope-reorder")
_OF_MUTANTS = "tests/test_mutants.py"
_WORLDS = "tests/worlds"
_WORLD_S = 8.0
"""Duration of the start of a pooled world. It counts in the first test that uses the world."""


@dataclass
class Test:
    """Duration of one test, and the fixtures of a module or the session that it shares."""

    own_s: float = 0.0
    failed: bool = False
    shared: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """A finished measurement. `folder` holds the measured tree, `.coverage` and `records.jsonl`."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, suite: Sequence[str] = ()) -> "Measured":
        """Reuse the measurement in `folder`, or make one there. `suite`: files to test; default: all."""
        if not (folder / ".coverage").exists():
            _measure(folder, suite)
        return cls(folder)

    @cached_property
    def tests(self) -> dict[str, Test]:
        tests = defaultdict[str, Test](Test)
        for event in events(self.folder / "records.jsonl"):
            if "begins" in event:
                tests[event["begins"]].shared = event["shared"]
            elif "test" in event:
                tests[event["test"]].own_s += event["seconds"]
                tests[event["test"]].failed |= event["failed"]
        return dict(tests)

    @cached_property
    def _fixtures_s(self) -> dict[str, float]:
        setups = [event for event in events(self.folder / "records.jsonl") if "fixture" in event]
        return {event["fixture"]: event["seconds"] for event in sorted(setups, key=lambda event: event["seconds"])}

    def cost_s(self, test: str) -> float:
        """Return the duration of a test that runs alone, which includes the setup of its shared fixtures."""
        shared = self.tests[test].shared
        return self.tests[test].own_s + sum(self._fixtures_s.get(name, 0) for name in shared) + _WORLD_S * (_WORLDS in shared)

    def in_order(self, tests: Iterable[str]) -> list[str]:
        """Sort by cost. Tests that share fixtures of a module stay together: pytest sets these up again after other modules."""
        groups = defaultdict[str, list[str]](list)
        for test in sorted(tests, key=self.cost_s):
            of_module = any(".py" in name for name in self.tests[test].shared)
            groups[test.partition("::")[0] if of_module else test].append(test)
        return [test for group in sorted(groups.values(), key=lambda group: self.cost_s(group[0])) for test in group]

    def executed(self, mutant: Mutant) -> list[str]:
        """Return the usable tests that execute the body of the mutant's function, cheapest first."""
        function = find(mutant, self.folder / "tree").function
        lines = self._data.contexts_by_lineno(str(self.folder / "tree" / function.path))
        contexts = {context for line in range(function.body, function.end + 1) for context in lines.get(line, ())}
        owners = {self._owner(context) for context in contexts}
        return self.in_order(name for name in self.usable if name in owners or owners.intersection(self.tests[name].shared))

    @property
    def usable(self) -> list[str]:
        """Tests that pass in the unchanged tree, except those that compare the sources with the mutants."""
        return [name for name, test in self.tests.items() if not test.failed and not name.startswith(_OF_MUTANTS)]

    @cached_property
    def _data(self) -> CoverageData:
        data = CoverageData(str(self.folder / ".coverage"))
        data.read()
        return data

    def _owner(self, context: str) -> str | None:
        """Return the test or shared fixture of a context, which is `test`, `process|test` or `process|`."""
        parts = context.split("|")  # a node id may contain the separator too
        ends = ["|".join(parts[place:]) for place in range(len(parts))]
        begins = ["|".join(parts[:place]) for place in range(len(parts), 0, -1)]
        known = self.tests.keys() | self._fixtures_s.keys()
        return next((name for name in map(bare, ends + begins) if name in known), None)


def events(records: Path) -> list[dict[str, Any]]:
    """Read what tests.mutants.observe has written."""
    lines = records.read_text().splitlines(keepends=True) if records.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _measure(folder: Path, suite: Sequence[str]) -> None:
    shutil.rmtree(folder / "tree", ignore_errors=True)
    for leftover in (*folder.glob(".coverage.*"), *folder.glob("records.jsonl")):
        leftover.unlink()
    tree = folder / "tree"
    tree.mkdir(parents=True)
    copy_tree(tree)
    settings = folder / "coverage.ini"
    settings.write_text(_SETTINGS.format(sources="".join(f"\n    {tree / package}" for package in PACKAGES), folder=folder))
    variables = environment(tree) | {
        "COVERAGE_PROCESS_START": str(settings),  # a .pth file of coverage starts it in every process
        "MUTANTS_RECORDS": str(folder / "records.jsonl"),
    }
    variables.pop("MUTANTS_PLAN", None)
    status = subprocess.run([*PYTEST, *_TWO, *suite], cwd=tree, env=variables, check=False).returncode
    if status not in (0, 1):
        raise RuntimeError(f"the clean run of the suite ended with status {status}")
    combined = Coverage(data_file=folder / "combined", config_file=str(settings))
    combined.combine([str(path) for path in folder.glob(".coverage.*")])
    combined.save()
    (folder / "combined").replace(folder / ".coverage")


_SETTINGS = """[run]
source ={sources}
patch = _exit
data_file = {folder}/.coverage
parallel = true
context = ${{PYTEST_CURRENT_TEST-none}}
disable_warnings = no-data-collected, module-not-measured, module-not-imported
"""
