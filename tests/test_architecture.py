"""The three laws of the house, and what else would erode by accident."""

import ast
import importlib
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.probes.base import Probe
from harness.rank.assemble import base_of
from harness.rank.rig import Parts
from harness.schema.case import AXES, PROBE, TABLE, USUAL
from harness.schema.config import BenchmarkConfig

ROOT = Path(__file__).parent.parent
OPTIONS = [(path.parent.name, path.stem) for axis in AXES for path in sorted((ROOT / "conf" / axis).glob("*.yaml"))]
PROBES = [path.stem for path in sorted((ROOT / "conf" / PROBE).glob("*.yaml"))]
NO_AXES = {"experiment", "launch", PROBE, "__pycache__"}
BASES = tuple(f"harness.axes.{axis}.base" for axis in AXES)

# Package to what it may import of ours, and what it must never import; the first that fits counts.
# The composition roots import what they like.
LAW: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "harness.alias": (("harness.audit", "harness.load_run", "launch.__main__"), ("torch", "pandas")),
    "harness.schema": ((), ("torch", "pandas", "hydra")),
    "harness.tensors": ((), ("pandas", "hydra", "omegaconf")),
    "harness.numerics": ((), ("pandas", "hydra", "omegaconf", "torch.distributed")),
    "harness.probes": (("harness.schema", "harness.numerics", "harness.tensors"), ("pandas", "hydra", "omegaconf")),
    "harness.axes": (("harness.schema", "harness.tensors"), ("pandas", "hydra", "omegaconf")),
    "harness.rank": (("harness.schema", "harness.numerics", "harness.tensors", "harness.probes", *BASES), ("pandas",)),
    "harness.report": (("harness.schema",), ("torch", "hydra")),
    "launch.agent": ((), ("pandas", "hydra", "omegaconf")),
    "launch": (("harness.schema", "harness.report"), ("torch",)),
}


def modules() -> Iterator[Path]:
    for package in ("harness", "launch"):
        yield from sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def breaches(path: Path, root: Path = ROOT) -> list[str]:
    """Imports of a module that the import law forbids."""
    module = ".".join(path.relative_to(root).with_suffix("").parts)
    if module in ("harness.__init__", "harness.__main__"):
        return []
    package = next(package for package in LAW if inside(module, package))
    allowed, forbidden = LAW[package]
    allowed = (*allowed, *(_beside(module) if package == "harness.axes" else (package,)))
    ours = [
        name
        for name in imports(path)
        if name.split(".")[0] in ("harness", "launch") and name not in ("harness", "harness.__version__")
    ]
    found = [name for name in ours if not any(inside(name, one) or name == one.rpartition(".")[0] for one in allowed)]
    return found + [name for name in imports(path) if any(inside(name, one) for one in forbidden)]


def _beside(module: str) -> list[str]:
    """What a module of an axis may import of its axis: the base, and what two options share, but no option."""
    _, _, axis, *_ = module.split(".")
    options = {option for of, option in OPTIONS if of == axis}
    others = {path.stem for path in (ROOT / "harness" / "axes" / axis).glob("*.py")} - options - {"__init__"}
    return [f"harness.axes.{axis}.{name}" for name in others]


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_import_law(path: Path) -> None:
    assert breaches(path) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("harness/schema/case.py", "import torch"),
        ("harness/schema/case.py", "from harness.rank import trial"),
        ("harness/axes/reduction/sum.py", "from harness.axes.reduction.mean import MeanReduction"),
        ("harness/axes/reduction/sum.py", "from harness.axes.sync.base import Sync"),
        ("harness/probes/staleness.py", "from harness.rank import trial"),
        ("harness/probes/staleness.py", "from harness.axes.workload.base import Workload"),
        ("harness/rank/trial.py", "import pandas as pd"),
        ("harness/rank/trial.py", "from harness.axes.reduction.mean import MeanReduction"),
        ("harness/report/frame.py", "from torch import nn"),
        ("launch/job.py", "import torch"),
        ("launch/job.py", "from harness.rank.trial import Trial"),
    ],
)
def test_import_law_sees_a_forbidden_import(tmp_path: Path, module: str, line: str) -> None:
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n{(ROOT / module).read_text()}")
    assert breaches(path, tmp_path)


COLLECTIVES = ROOT / "harness" / "tensors" / "collectives.py"
"""The one module that may call them: gloo is silently wrong on tensors that are not contiguous."""
_SENDS = re.compile(r"_?(all_|i?(reduce|broadcast|gather|scatter|send|recv)|batch_isend|coalescing|allreduce|allgather)\w*")
_SENDERS = {"dist", "distributed", "group", "_group", "measured"}
"""The last part of what a collective is an attribute of: the module, or a process group."""


def collective_calls(path: Path) -> list[str]:
    """References to a collective of torch.distributed, however they are written."""
    tree = ast.parse(path.read_text())
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _SENDS.fullmatch(node.attr))
    imported = (name for name in imports(path) if name.startswith("torch.distributed."))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [
        *(ast.unparse(node) for node in attributes if ast.unparse(node.value).rpartition(".")[2] in _SENDERS),
        *(name for name in imported if _SENDS.fullmatch(name.rpartition(".")[2])),
        *(text for text in texts if "getattr(dist" in path.read_text() and _SENDS.fullmatch(text)),
    ]


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_one_module_calls_collectives(path: Path) -> None:
    assert path == COLLECTIVES or collective_calls(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "dist.all_reduce(gradient, group=group)",
        "partial(torch.distributed.broadcast, gradient)",
        "from torch.distributed import all_gather",
        "reduce_scatter = getattr(dist, 'reduce_scatter_single', None) or dist.reduce_scatter_tensor",
        "self._group.allreduce([gradient])",
        "dist.batch_isend_irecv(operations)",
        "dist._coalescing_manager(group)",
    ],
)
def test_a_collective_elsewhere_is_seen(tmp_path: Path, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"import torch\nimport torch.distributed as dist\n{line}\n")
    assert collective_calls(path)


_EXECUTES = re.compile(
    r"eval|exec|(\w+\.)*(pickle|marshal|shelve|dill|cloudpickle|joblib)(\.\w+)?|torch\.load|np\.load|\w+\.read_pickle|"
    r"yaml\.(unsafe_|full_)?load(_all)?|(\w+\.)*\w+_object(_list)?"
)
"""Calls that execute or unpickle their input, such as torch's object collectives, whose input comes from other ranks."""
_SAFE = {"OmegaConf.to_object", "hydra.utils.get_object", "get_object"}


def executions(path: Path) -> list[str]:
    """Calls and imports that could execute what stands in a file, in a store, or in a message of another rank."""
    calls = (ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [name for name in (*calls, *imports(path)) if _EXECUTES.fullmatch(name) and name not in _SAFE]


def test_nothing_that_is_read_is_executed() -> None:
    assert {path: found for path in modules() if (found := executions(path))} == {}


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "torch.load(path)", "np.load(path, allow_pickle=True)", "eval(text)"),
        *("yaml.load(text, yaml.Loader)", "pd.read_pickle(path)", "dist.all_gather_object(found, text)"),
        *("from torch.distributed import broadcast_object_list", "dist.broadcast_object_list(found)"),
    ],
)
def test_an_execution_is_seen(tmp_path: Path, line: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(line)
    assert executions(path)


@pytest.mark.parametrize(("axis", "option"), OPTIONS)
def test_mirror_law(axis: str, option: str) -> None:
    """Axis and option name the folder, the file, the class, the YAML, and its one key."""
    node = yaml.safe_load((ROOT / "conf" / axis / f"{option}.yaml").read_text())
    name = "".join(word.capitalize() for word in f"{option}_{axis}".split("_"))
    assert list(node) == [option]
    assert node[option]["_target_"] == f"harness.axes.{axis}.{option}.{name}"
    cls = getattr(importlib.import_module(f"harness.axes.{axis}.{option}"), name)
    base = getattr(importlib.import_module(f"harness.axes.{axis}.base"), axis.capitalize())
    assert issubclass(cls, base)
    assert cls.__doc__


@pytest.mark.parametrize("probe", PROBES)
def test_mirror_law_of_probes(probe: str) -> None:
    node = yaml.safe_load((ROOT / "conf" / PROBE / f"{probe}.yaml").read_text())
    name = "".join(word.capitalize() for word in f"{probe}_{PROBE}".split("_"))
    assert list(node) == [probe]
    assert node[probe]["_target_"] == f"harness.probes.{probe}.{name}"
    cls = getattr(importlib.import_module(f"harness.probes.{probe}"), name)
    assert issubclass(cls, Probe)
    assert cls.__doc__


def test_every_option_class_has_its_yaml() -> None:
    classes = {
        (path.parent.name, node.name)
        for path in (ROOT / "harness" / "axes").rglob("*.py")
        if path.stem != "base"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.endswith(path.parent.name.capitalize())
    }
    assert classes == {(axis, "".join(word.capitalize() for word in f"{option}_{axis}".split("_"))) for axis, option in OPTIONS}


def test_axes_are_the_same_everywhere() -> None:
    folders = {path.name for path in (ROOT / "harness" / "axes").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(AXES)
    assert folders == {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - NO_AXES
    groups = (*AXES, PROBE)
    assert [field.name for field in fields(BenchmarkConfig)][-len(groups) :] == list(groups)
    assert [field.name for field in fields(Parts)] == list(AXES)
    assert [base_of(axis).__name__.lower() for axis in groups] == list(groups)
    trunk = (ROOT / "conf" / "config.yaml").read_text()
    chosen = {key: value for one in yaml.safe_load(trunk)["defaults"] if isinstance(one, dict) for key, value in one.items()}
    assert list(chosen) == [*groups, "launch", "experiment"]
    assert {axis: chosen[axis] for axis, option in USUAL.items() if option} == {
        axis: [option] for axis, option in USUAL.items() if option
    }
    words = {axis: re.search(rf"^  - {axis}:.*# (.*)$", trunk, re.MULTILINE) for axis in AXES}
    assert {axis: found and found[1] for axis, found in words.items()} == {axis: TABLE[axis].help for axis in AXES}


def asked_of_setuptools(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments that setup.py gives to setuptools in a folder."""
    setuptools, asked = pytest.importorskip("setuptools"), dict[str, Any]()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(setuptools, "setup", asked.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return asked


def test_the_wheel_has_every_module_and_every_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of an axis that is added, without an edit of setup.py or pyproject.toml."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("*.py"))
    for name in ("harness/axes/added", "conf/added", "conf/__pycache__"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "conf" / "added" / "new.yaml").touch()
    python = [path.relative_to(ROOT) for path in modules()]
    for name in [*python, Path("harness/axes/added/__init__.py")]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    asked = asked_of_setuptools(tmp_path, monkeypatch)
    folders = {".".join(path.parent.parts) for path in python} - {"harness.alias"} | {"harness.axes.added"}
    yaml = {".".join(("harness", *path.parent.relative_to(tmp_path).parts)) for path in (tmp_path / "conf").rglob("*.yaml")}
    assert {"harness.conf", "harness.conf.reduction", "harness.conf.added"} <= yaml
    assert set(asked["packages"]) == folders | yaml | {"reducebench"}
    assert {name for name, patterns in asked["package_data"].items() if patterns == ["*.yaml"]} == yaml
    assert asked["package_dir"] == {"harness.conf": "conf", "reducebench": "harness/alias"}


def test_the_changelog_tells_of_this_version() -> None:
    from harness import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the statement."""
    program = f"{statement}\nimport sys\nprint(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_the_launcher_holds_no_torch() -> None:
    """Seen in a parent that has composed, checked its targets, and rendered nothing yet."""
    run = "from launch.__main__ import main\nassert main(['--dry-run', 'experiment=smoke']) == 0"
    assert not {"torch", "pandas", "sklearn"} & loaded_after(run)


def test_ranks_hold_no_pandas_and_no_sklearn() -> None:
    held = loaded_after("import harness.rank.session\nfrom harness.axes.workload.digits import load_digits\nload_digits()")
    assert "torch" in held
    assert not {"pandas", "sklearn"} & held


def test_the_report_holds_no_torch() -> None:
    modules = ("render", "export.to_tensorboard", "export.to_mlflow")
    assert "torch" not in loaded_after("; ".join(f"import harness.report.{module}" for module in modules))


_WRITES = {
    *(
        "mkdir",
        "makedirs",
        "unlink",
        "rmdir",
        "rmtree",
        "renames",
        "symlink_to",
        "symlink",
        "hardlink_to",
        "touch",
    ),
    *("write_text", "write_bytes", "copy2", "copyfile", "copytree", "move", "truncate", "chmod", "utime", "savez", "tofile"),
    *("TemporaryDirectory", "NamedTemporaryFile", "mkstemp", "mkdtemp", "SummaryWriter", "EventFileWriter", "log_artifact"),
    *("np.save", "torch.save", "os.open", "os.replace", "os.remove", "os.rename", "Path.replace"),
}
_CANDIDATES = {name.rpartition(".")[2] for name in _WRITES} | {"open", "savefig", "to_csv", "to_parquet"}
_ELSEWHERE = {
    "harness/schema/run_dir.py": 10,  # folders of a new run and `latest`, made and removed; scratch; the content of the lock
    "harness/schema/reading.py": 3,  # for reading
    "harness/schema/terminal.py": 4,  # /dev/null; standard output and error
    "harness/report/gate_files.py": 2,  # --json and --junit, which the reader names
    "harness/report/export/to_tensorboard.py": 1,  # --to
    "harness/rank/memory.py": 1,  # /proc/self/clear_refs
    "harness/rank/profiling.py": 2,  # into an open file; a folder of random name, in one that was made without following links
}
"""Files to how many calls in them may write by a path of their own."""


def _writes(path: Path) -> list[str]:
    """Calls that change the file system by a path; `open` and the like where a mode says so."""
    found = []
    for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
        last = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if last not in _CANDIDATES:
            continue
        name = ast.unparse(call.func)
        modes = [
            *call.args[: 2 if name in ("open", "gzip.open") else 1],
            *(key.value for key in call.keywords if key.arg == "mode"),
        ]
        texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
        to_path = [*call.args[:1], *(key.value for key in call.keywords)] and last in ("savefig", "to_csv", "to_parquet")
        opened = last == "open" and any(re.fullmatch(r"[rwaxbt+]+", text) and set(text) & set("wax+") for text in texts)
        if (_WRITES & {name, last}) or opened or (to_path and not _in_memory(call)):
            found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {name}")
    return found


def _in_memory(call: ast.Call) -> bool:
    return not call.args or ast.unparse(call.args[0]) == "buffer"


def test_files_are_written_in_one_place() -> None:
    """Other calls would follow links that another user planted in a run."""
    found = {str(path.relative_to(ROOT)): _writes(path) for path in modules()}
    assert len(found.pop("harness/schema/whole_files.py")) > 4, "calls are found at all"
    counted = {name: len(calls) for name, calls in found.items() if calls}
    assert counted == _ELSEWHERE, {name: found[name] for name in counted if counted[name] != _ELSEWHERE.get(name)}
