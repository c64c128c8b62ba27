"""Parameters of options: what a constructor's annotations say is checked alike by the launcher, from source, and by ranks."""

import importlib
import json
from pathlib import Path

import pytest

from harness.rank.assemble import make
from harness.schema.case import AXES, PROBE
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases
from harness.schema.parameters import signature_of
from harness.schema.refusal import RefusedError
from harness.schema.units import to_bytes
from launch.compose import compose_config
from launch.signatures import read_signature
from launch.source import Definition, Sources
from tests.options import AVAILABLE
from tests.running import ROOT

EVERYTHING = [f"{axis}=[{','.join(AVAILABLE[axis])}]" for axis in (*AXES, PROBE)]


def composed(*overrides: str, config_dir: str | None = None) -> BenchmarkConfig:
    return compose_config(overrides, config_dir=config_dir, nproc_per_node=2)


def test_the_launcher_reads_from_source_what_the_ranks_have() -> None:
    config, sources, seen = composed(*EVERYTHING), Sources([]), 0
    for axis in (*AXES, PROBE):
        for node in getattr(config, axis).values():
            module, _, name = node["_target_"].rpartition(".")
            definition = sources.find(node["_target_"])
            assert isinstance(definition, Definition)
            assert read_signature(sources, definition) == signature_of(getattr(importlib.import_module(module), name)), name
            seen += 1
    assert seen > len(AXES)


WRONG = {
    "reduction.micro_batch.size=0": "less than 1; accepted: a whole number, at least 1",
    "reduction.micro_batch.size=x": "is text; accepted: a whole number",
    "reduction.micro_batch.size=true": "is true or false; accepted: a whole number",
    "reduction.micro_batch.size=null": "is null; accepted",
    "reduction.micro_batch.size={a:1}": "is a mapping; accepted",
    "workload.mlp_digits.hidden=0.5": "is a floating-point number; accepted: a whole number",
    "workload.mlp_digits.samples=-3": "less than 1; accepted: a whole number, at least 1 and at most 2147483647 or null",
    "workload.dropout_digits.p=1": "not less than 1; accepted: a number, more than 0 and less than 1",
    "workload.dropout_digits.masks=all": "unknown; accepted: one of rank, sample",
    "workload.transformer_topics.width=33": "not a multiple of heads=2",
    "aggregation.bucketed.bytes=64X": "not a size; accepted: a whole number, bytes, with or without a unit",
    "aggregation.bucketed.bytes=1.5": "is a floating-point number",
    "aggregation.ddp_powersgd.rank=1e999": "is not finite; accepted: a whole number",
    "aggregation.ddp.bucket_cap_mb=nan": "not a number",
    "aggregation.fsdp.reduce_dtype=fp8": "unknown; accepted: one of fp32, bf16, fp16 or null",
    "sharding.uneven.shares=[1,0]": "not more than 0",
    "sharding.uneven.shares=[]": "an empty list",
    "clip.by_norm.max_norm=inf": "is not finite",
    "fault.dropped_sample.rank=-1": "less than 0",
    "probe.collectives.dtypes=[complex64]": "unknown; accepted: a list of: one of float32",
    "probe.collectives.in_place=[true,true]": "true is listed twice",
    "probe.collectives.in_flight=[0]": "less than 1",
    "probe.collectives.most_bytes=2": "less than least_bytes=4",
    "probe.collectives.warm_up=1e23": "is a floating-point number",
    "probe.repeatability.runs=2.5": "is a floating-point number; accepted: a whole number, at least 2",
    "probe.repeatability.threads=[]": "an empty list",
    "probe.summation_order.bytes=[4]": "less than 8",
    "+probe.collectives.nonsense=1": "collectives has no parameter nonsense; accepted: collectives, dtypes",
    "~reduction.micro_batch.size": "not given, and it has no default; accepted: a whole number",
}
HYDRAS = {
    "+reduction.micro_batch._partial_=true": "makes no option",
    "+reduction.micro_batch._partial_=3": "not a choice; accepted: true or false",
    "+reduction.micro_batch._convert_=x": "unknown; accepted: one of none, partial",
    "+reduction.micro_batch._args_=3": "no list",
    "+reduction.micro_batch._args_=[1,2]": "2 are given; accepted: at most 1",
    "reduction.micro_batch._target_=harness.axes.sync.none.NoneSync": "no option of reduction; accepted: a class that inherits",
    "reduction.micro_batch._target_=torch.nn.Linear": "no option of reduction",
    "reduction.micro_batch._target_=builtins.int": "no option of reduction",
    "reduction.micro_batch._target_=harness.axes.reduction.base.Reduction": "an abstract class; accepted: one that implements",
    "reduction.micro_batch._target_=harness.axes.reduction.micro_batch": "is a module",
}


def _option(line: str) -> tuple[str, str]:
    axis, option, _ = line.lstrip("+~").split(".", 2)
    return axis, option


@pytest.mark.parametrize("line", [*WRONG, *HYDRAS])
def test_a_wrong_parameter_is_refused_before_ranks_start(line: str) -> None:
    axis, option = _option(line)
    with pytest.raises(RefusedError) as refused:
        composed(f"{axis}=[{option}]", line)
    key = line.lstrip("+~").partition("=")[0]
    assert str(refused.value).startswith(key)
    assert {**WRONG, **HYDRAS}[line] in str(refused.value)


def test_ranks_refuse_a_wrong_parameter_in_the_same_words() -> None:
    """A class without source is checked by them alone."""
    node = composed("reduction=[micro_batch]").reduction["micro_batch"]
    for value, words in ((0, "size=0: less than 1; accepted"), ("x", "size=x: is text; accepted")):
        with pytest.raises(RefusedError, match=f"^reduction.micro_batch.{words}"):
            make("reduction", "micro_batch", json.dumps({"_target_": node["_target_"], "size": value}))
    with pytest.raises(RefusedError, match="has no parameter sizes"):
        make("reduction", "micro_batch", json.dumps({"_target_": node["_target_"], "size": 1, "sizes": 1}))


def test_sizes_in_bytes_take_units() -> None:
    texts = ("4096", "64K", "64M", "64m", "64MB", "64MiB", " 1.5GiB", "1T", "2kb", "7B")
    powers = (4096, 64 * 2**10, 64 * 2**20, 64 * 2**20, 64 * 2**20, 64 * 2**20, 3 * 2**29, 2**40, 2**11, 7)
    assert [to_bytes(text) for text in texts] == list(powers)
    for text in ("", "M", "64X", "-64M", "1e3", "0.3B", "1.5", "nan", "64 M B", "\u0664M"):
        with pytest.raises(ValueError, match="accepted: bytes"):
            to_bytes(text)


def test_a_size_with_a_unit_is_the_same_case_as_its_number() -> None:
    units = composed(
        "aggregation=[bucketed]",
        "aggregation.bucketed.bytes=[64K,1M]",
        "probe=[collectives,summation_order]",
        "probe.collectives.most_bytes=64M",
        "probe.summation_order.bytes=[64,4KiB]",
    )
    numbers = composed(
        "aggregation=[bucketed]",
        "aggregation.bucketed.bytes=[65536,1048576]",
        "probe=[collectives,summation_order]",
        "probe.collectives.most_bytes=67108864",
        "probe.summation_order.bytes=[64,4096]",
    )
    assert units == numbers
    assert [case.case_id for case in expand_cases(units)] == [case.case_id for case in expand_cases(numbers)]
    with pytest.raises(RefusedError, match="65536 is listed twice"):
        composed("aggregation=[bucketed]", "aggregation.bucketed.bytes=[64K,65536]")


OWN = """
from dataclasses import dataclass
from typing import Annotated, Optional
import nosuch_package
from harness.axes.sync.none import NoneSync
from harness.schema.parameters import Bytes, Range

open("executed", "w")
Level = Annotated[int, Range(1, 2**3)]


class OwnSync(NoneSync):
    def __init__(self, level: Level, *, limit: Bytes = 4, note: "Optional[str]" = None, helper: nosuch_package.X = 0, **more):
        ...


class InheritingSync(OwnSync):
    pass


@dataclass
class PlainSync(NoneSync):
    level: int
"""


def test_classes_of_the_user_are_checked_without_being_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sync").mkdir()
    (tmp_path / "own.py").write_text(OWN)
    for name in ("Own", "Inheriting", "Plain"):
        (tmp_path / "sync" / f"{name.lower()}.yaml").write_text(f"{name.lower()}: {{_target_: own.{name}Sync, level: 3}}\n")

    def level(option: str, value: str) -> object:
        return composed(f"sync=[{option}]", f"sync.{option}.{value}", config_dir=str(tmp_path)).sync[option]

    assert level("own", "level=8") == {"_target_": "own.OwnSync", "level": 8}
    for option in ("own", "inheriting"):
        with pytest.raises(RefusedError, match=rf"sync\.{option}\.level=9: more than 8; accepted: a whole number, at least 1"):
            level(option, "level=9")
    for value in ("level=9", "level=x"):
        assert level("plain", value), "a decorator may make any constructor"
    config = composed(
        "sync=[own]", "+sync.own.limit=1K", "+sync.own.helper={a: 1}", "+sync.own.other=1", config_dir=str(tmp_path)
    )
    assert config.sync["own"]["limit"] == 1024
    with pytest.raises(RefusedError, match="note=3: is a whole number; accepted: text or null"):
        composed("sync=[own]", "+sync.own.note=3", config_dir=str(tmp_path))
    assert not (tmp_path / "executed").exists()


LOOSE = """
from functools import wraps
from harness.axes.sync.none import NoneSync


def verbosely(init):
    @wraps(init)
    def wrapper(self, *args, verbose=False, **named):
        init(self, *args, **named)
    return wrapper


class LooseSync(NoneSync):
    def __init__(self, level: int = None, share: int = 0.5, pair: tuple[int, float] = (1, 0.5), shape: tuple[int, ...] = (3,)):
        ...


class TextSync(NoneSync):
    def __init__(self, level: "number of levels" = 3, share: "1/0" = 1, pair: {"help": "two"} = (1, 2), shape: [int] = ()):
        ...


class WrappedSync(NoneSync):
    @verbosely
    def __init__(self, level: int = 3):
        ...
"""
GOOD = {
    "Loose": ({"level": None}, {"level": 3}, {"share": 0.25}, {"pair": [2, 0.25]}, {"shape": [4, 5, 6]}),
    "Text": ({"level": 4}, {"level": "x", "share": 2, "pair": [1], "shape": [1]}),
    "Wrapped": ({"level": 4, "verbose": True},),
}


def test_classes_that_python_accepts_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default says more than its annotation, an annotation may be any expression, and a wrapper takes more than it wraps."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sync").mkdir()
    (tmp_path / "loose.py").write_text(LOOSE)
    made = [{"_target_": f"loose.{name}Sync", **given} for name, each in GOOD.items() for given in each]
    nodes = {f"own{place}": node for place, node in enumerate(made)}
    for option, node in nodes.items():
        (tmp_path / "sync" / f"{option}.yaml").write_text(json.dumps({option: node}))
        assert type(make("sync", option, json.dumps(node))).__name__ in str(node["_target_"])
    assert composed(f"sync=[{','.join(nodes)}]", config_dir=str(tmp_path)).sync == nodes
    wrong = {
        "level=x": "whole number or null",
        "pair=[1,x]": "a list of 2: a whole number, a number",
        "shape=[x]": "a list of: a",
    }
    for given, words in wrong.items():
        key, _, value = given.partition("=")
        with pytest.raises(RefusedError, match=words):
            composed("sync=[own0]", f"++sync.own0.{given}", config_dir=str(tmp_path))
        with pytest.raises(RefusedError, match=words):
            make("sync", "own0", json.dumps({**nodes["own0"], key: value.strip("[]").split(",") if "[" in value else value}))


def test_what_a_workload_is_made_of_is_checked_too() -> None:
    asked = ("workload=[diabetes]", "workload.diabetes.model.in_features=x")
    with pytest.raises(RefusedError, match=r"model\.in_features=x: is text; accepted: a whole number"):
        composed(*asked, config_dir=str(ROOT / "docs" / "example"))
    with pytest.raises(RefusedError, match=r"diabetes\.loss=3: is a whole number; accepted: a mapping with _target_"):
        composed("workload=[diabetes]", "workload.diabetes.loss=3", config_dir=str(ROOT / "docs" / "example"))


def test_a_matrix_that_no_run_could_list_is_refused() -> None:
    many = ",".join(map(str, range(1, 400)))
    with pytest.raises(RefusedError, match="workload: makes 159201 cases; accepted: at most 100000"):
        composed("workload=[mlp_digits]", f"workload.mlp_digits.hidden=[{many}]", f"workload.mlp_digits.samples=[{many}]")
