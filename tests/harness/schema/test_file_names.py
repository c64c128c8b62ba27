"""Any text becomes the name of one file; ordinary ones stay what they are."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.schema.case import AXES, USUAL, Case
from harness.schema.file_names import file_name
from launch.compose import GROUPS, available_options

HOSTILE = (
    "x/../../../PWNED",
    "/etc/passwd",
    "..",
    ".",
    "",
    ".hidden",
    "-rf",
    " ",
    "a/b",
    "a\0b",
    "a\nb",
    "a\\b",
    "\u202egnp.exe",
    "\ud800",
    "*",
    "[a]",
    "~root",
    "y" * 5000,
    "ü" * 200,
    "x.part3/..",
    "a~0123456789abcdef",
)


def test_names_of_options_and_cases_are_ordinary() -> None:
    options = available_options()
    longest = Case(**{axis: max(options[axis], key=len) for axis in AXES}, nodes={"workload": {"seed": 1}})
    names = {*(name for group in GROUPS for name in options[group]), *(usual for usual in USUAL.values() if usual)}
    names |= {longest.case_id, longest.setting.case_id}
    assert len(names) > 60
    assert {name: file_name(name) for name in names} == {name: name for name in names}


@pytest.mark.parametrize("text", HOSTILE)
def test_another_text_has_a_name_of_its_own(text: str) -> None:
    name = file_name(text)
    assert re.fullmatch(r"[^./~ -][^/~\0]*~[0-9a-f]{16}", name), name
    assert len(name.encode()) <= 236
    assert file_name(name) != name, "nobody else can be called so"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(), unique=True, min_size=2, max_size=4))
@example(list(HOSTILE))
@example(["ü" * 200, "ü" * 201])
def test_different_texts_have_different_names_of_one_folder(texts: list[str]) -> None:
    texts = list(dict.fromkeys([*texts, *map(file_name, texts)]))
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert (Path("/run/cases") / f"{name}.launch999.parquet").resolve().parent == Path("/run/cases")
        assert len(f"{name}.launch999.parquet".encode()) <= 255
        assert not name.startswith(".")
