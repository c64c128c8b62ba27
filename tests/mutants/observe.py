"""pytest plugin of `make mutants`: record tests, name them to coverage, and run planned tests in their order.

MUTANTS_RECORDS is the file that gets one line of JSON for each event. MUTANTS_PLAN, if set, is a file of JSON with the keys
`order` (node ids to run), `known` (all measured node ids; those outside `order` are left out), and `limit_s` (no test starts
later).
"""

import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.running import ENVIRONMENT

_CURRENT = "PYTEST_CURRENT_TEST"
_RECORDS = Path(os.environ.get("MUTANTS_RECORDS", os.devnull))
_PLAN = json.loads(Path(os.environ["MUTANTS_PLAN"]).read_text()) if "MUTANTS_PLAN" in os.environ else None
_STARTED = time.monotonic()
_shared_s: list[float] = []
"""Durations of shared fixtures since the last report."""


def bare(node_id: str) -> str:
    """Remove the phase that pytest adds, and the group that xdist adds."""
    return re.sub(r"@[^\]]*$", "", re.sub(r" \((setup|call|teardown)\)$", "", node_id))


@pytest.hookimpl(trylast=True)  # pytest itself groups by fixture before
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the planned tests and those that the plan does not know, in the order of the plan."""
    if _PLAN is None:
        return
    place = {test: number for number, test in enumerate(_PLAN["order"])}
    dropped = set(_PLAN["known"]) - set(place)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in dropped])
    kept = [item for item in items if item.nodeid not in dropped]
    items[:] = sorted(kept, key=lambda item: place.get(item.nodeid, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    test = bare(item.nodeid)
    assert isinstance(item, pytest.Function)
    definitions = [own[-1] for own in item._fixtureinfo.name2fixturedefs.values()]
    shared = [_label(definition) for definition in definitions if definition.baseid and definition.scope != "function"]
    _record(begins=test, at=time.time(), shared=shared)
    with _named(test):
        result = yield
    if _PLAN is not None and time.monotonic() - _STARTED > _PLAN["limit_s"]:
        _record(limit=_PLAN["limit_s"])
        item.session.shouldstop = f"{_PLAN['limit_s']} s are over"
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    if fixturedef.scope == "function" or not fixturedef.baseid:
        return (yield)
    begun = time.monotonic()
    with _named(_label(fixturedef)):
        try:
            return (yield)
        finally:
            _shared_s.append(time.monotonic() - begun)
            _record(fixture=_label(fixturedef), seconds=_shared_s[-1])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    own_s = max(report.duration - sum(_shared_s), 0.0)
    _shared_s.clear()
    _record(test=bare(item.nodeid), seconds=own_s, failed=report.failed, message=_message(report))
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _record(test=report.nodeid, seconds=0.0, failed=True, message=_message(report))


def _message(report: Any) -> str:
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")] if report.failed else []
    return lines[0].removeprefix("E ").strip() if lines else ""


def _label(fixture: pytest.FixtureDef[Any]) -> str:
    return f"{fixture.baseid}/{fixture.argname}"


def _record(**event: object) -> None:
    with _RECORDS.open("a") as records:
        records.write(json.dumps(event) + "\n")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name to coverage what runs now, in this process and in processes that start now; tests start most with ENVIRONMENT."""
    environments = (os.environ, ENVIRONMENT)
    outer = [environment.get(_CURRENT) for environment in environments]
    _switch(name, environments)
    try:
        yield
    finally:
        _switch(bare(outer[1] or ""), ())
        for environment, value in zip(environments, outer, strict=True):
            environment.pop(_CURRENT, None)
            environment.update({_CURRENT: value} if value else {})


def _switch(name: str, environments: tuple[Any, ...]) -> None:
    for environment in environments:
        environment[_CURRENT] = name.replace("\0", "(null)")
    coverage = sys.modules.get("coverage")
    if current := coverage and coverage.Coverage.current():
        current.switch_context(name)
