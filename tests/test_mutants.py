"""The planted defects of `make mutants` still fit the sources; nothing is imported from a changed source."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.apply import MatchError, find
from tests.mutants.planted import MUTANTS, Mutant
from tests.running import ROOT

AREA = """class Area:
    def of(self, width: float) -> float:
        return width * width


def of(width: float) -> float:
    def inner() -> float:
        return width + 1

    return inner()
"""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place(mutant: Mutant) -> None:
    match = find(mutant)
    before = (ROOT / match.function.path).read_text()
    assert ast.dump(ast.parse(match.source)) != ast.dump(ast.parse(before))


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    assert len(MUTANTS) == 40


def planted(root: Path, function: str, old: str) -> Mutant:
    for package in ("harness", "launch"):
        (root / package).mkdir()
    (root / "launch" / "area.py").write_text(AREA)
    return Mutant("name", function, old, "new", "defect")


def test_a_function_is_found_by_its_qualified_name(tmp_path: Path) -> None:
    match = find(planted(tmp_path, "of.inner", "width + 1"), tmp_path)
    assert (match.function.begin, match.function.body, match.function.end) == (7, 8, 8)
    assert match.source == AREA.replace("width + 1", "new")


@pytest.mark.parametrize(
    ("function", "old", "found"),
    [
        ("Area.of", "height", "0 in launch/area.py:2"),
        ("Area.of", "width", "3 in launch/area.py:2"),
        ("Area.by", "width", "no such function"),
    ],
)
def test_no_place_and_several_places_are_refused(function: str, old: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(MatchError, match=f"found: {found}$"):
        find(planted(tmp_path, function, old), tmp_path)
