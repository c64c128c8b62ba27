"""Packages that reducebench installs: it declares what it imports, and every package has one version."""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import dependencies
from tests.dependencies import ROOT

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")


def imported(path: Path) -> Iterator[str]:
    """Top-level modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def provided(names: set[str]) -> set[str]:
    """Top-level modules of installed packages."""
    records = [distribution(name).read_text("RECORD") or "" for name in names]
    return {line.partition(",")[0].partition("/")[0].removesuffix(".py") for text in records for line in text.splitlines()}


def undeclared(names: set[str]) -> dict[str, str]:
    """Module to a file that imports it, of what no package of these names has."""
    known = {*sys.stdlib_module_names, "harness", "launch", "_typeshed"}  # the last is for type checkers alone
    found = {name: str(path.relative_to(ROOT)) for path in sources() for name in imported(path) if name not in known}
    has = provided(names)
    return {name: path for name, path in found.items() if name not in has}


def sources() -> Iterator[Path]:
    for package in ("harness", "launch"):
        yield from sorted((ROOT / package).rglob("*.py"))


def test_every_package_that_is_imported_is_declared() -> None:
    groups = ("run", "compiled", "mlflow", "tensorboard")
    names = {canonicalize_name(Requirement(line).name) for group in groups for line in dependencies.asked()[group]}
    assert undeclared(names) == {}
    assert list(undeclared(names - {"pyyaml"})) == ["yaml"], "the look sees what is missing"


def test_every_package_that_is_needed_has_one_version() -> None:
    pins, found = dependencies.pins(), dependencies.installed()
    assert set(found) - set(pins) == set(), "python -m tests.dependencies, and a line in constraints.txt"
    if dependencies.version(found["torch"][0]) != pins["torch"]:
        pytest.skip("this environment is not made from constraints.txt")
    assert {name: dependencies.version(one) for name, (one, _) in found.items()}.items() <= pins.items()


def test_the_page_of_licences_is_the_installed_packages() -> None:
    if dependencies.version(dependencies.installed()["torch"][0]) != dependencies.pins()["torch"]:
        pytest.skip("this environment is not made from constraints.txt")
    assert dependencies.PAGE.read_text() == dependencies.page(), "python -m tests.dependencies"
