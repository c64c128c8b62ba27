"""The public names: harness, reducebench in an installation, and the older places."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from tests.running import ROOT

PUBLIC = ["__version__", "audit", "load_run"]


def test_the_facade_has_these_names_and_loads_neither_torch_nor_pandas() -> None:
    """In a fresh interpreter, in which no submodule of harness has been imported."""
    program = "import sys, harness\nprint(dir(harness), harness.__all__, {'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{PUBLIC} {PUBLIC} set()"


def test_every_public_name_resolves_and_is_documented() -> None:
    pages = "".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for name in harness.__all__:
        assert getattr(harness, name)
    for name in ("audit", "load_run"):
        assert f"from harness import {name}" in pages
        assert getattr(harness, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = harness.nosuch


def test_the_older_places_hold_the_same_objects() -> None:
    assert importlib.import_module("harness.report").load_run is harness.load_run
    assert importlib.import_module("harness.probes").audit is harness.audit


def test_reducebench_has_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installation maps it; tests/try_wheel.py imports it from the wheel."""
    (tmp_path / "reducebench").symlink_to(ROOT / "harness" / "alias")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "reducebench", raising=False)
    reducebench = importlib.import_module("reducebench")
    monkeypatch.delitem(sys.modules, "reducebench")
    assert reducebench.__all__ == harness.__all__ == dir(reducebench)
    assert all(getattr(reducebench, name) is getattr(harness, name) for name in harness.__all__)
    assert (ROOT / "harness" / "alias" / "py.typed").is_file()
