"""Names of cases in tables: short where the case's own option makes them plain."""

import pandas as pd
import pytest

from harness.report.across import _without_communication
from harness.report.labels import columns_but_of, labelled, reduction_names, values_of
from harness.report.sides import names_of
from harness.schema.case import AXES, TABLE, Case

BUCKETED, COALESCED = "aggregation.bucketed.bytes", "aggregation.coalesced.bytes"


def frame(*rows: dict[str, object]) -> pd.DataFrame:
    usual = {**dict.fromkeys(AXES, "same"), "reduction.micro_batch.size": 4}
    return pd.DataFrame([{"case_id": str(place), **usual, **row} for place, row in enumerate(rows)])


def test_equally_named_parameters_of_an_axis_share_a_column() -> None:
    cases = frame(
        {"aggregation": "bucketed", BUCKETED: 64},
        {"aggregation": "bucketed", BUCKETED: 128},
        {"aggregation": "coalesced", COALESCED: 256},
        {"aggregation": "flat"},
    )
    labels = labelled(cases)
    assert list(labels.columns) == ["workload", "reduction", "aggregation", "aggregation.bytes"]
    assert list(labels["aggregation.bytes"]) == ["64", "128", "256", ""]
    assert list(values_of(cases, "aggregation", "bytes")) == ["64", "128", "256", ""]
    assert list(names_of(cases.drop(columns="case_id").astype(object).fillna("")).columns) == list(labels.columns)
    assert {BUCKETED, "aggregation"}.isdisjoint(columns_but_of(cases, ["aggregation"]))


def test_a_parameter_that_only_the_option_decides_is_no_label() -> None:
    cases = frame({"aggregation": "bucketed", BUCKETED: 64}, {"aggregation": "coalesced", COALESCED: 256})
    assert list(labelled(cases).columns) == ["workload", "reduction", "aggregation"]


def test_null_is_a_value() -> None:
    cases = frame(*({"workload": "own", "workload.own.samples": samples} for samples in (None, 64)))
    assert labelled(cases)["workload.samples"].tolist() == ["", "64"]


def test_a_reduction_is_named_with_what_varies() -> None:
    sizes = [{"reduction": "micro_batch", "reduction.micro_batch.size": size} for size in (4, 8)]
    labels = labelled(frame(*sizes, {"reduction": "sum", "reduction.micro_batch.size": None}))
    assert list(reduction_names(labels).values()) == ["micro_batch size=4", "micro_batch size=8", "sum"]


@pytest.mark.parametrize("axis", AXES)
def test_a_step_without_communication_is_one_that_differs_in_nothing_but_the_sum(axis: str) -> None:
    cases = frame({"aggregation": "all_reduce"}, {"aggregation": "local", **({} if axis == "aggregation" else {axis: "other"})})
    found = _without_communication(cases.set_index("case_id"), pd.Series([3.0, 2.0], index=["0", "1"]))
    assert (found["0"] == 2.0) == TABLE[axis].in_sum
    assert pd.isna(found["1"])


def test_columns_are_those_of_a_case() -> None:
    case = Case(*"abcdefg", nodes={"sync": {"_target_": "a.B", "policy": {"wait_s": 1}}})
    cases = frame(dict(case.parameters))
    assert columns_but_of(cases, AXES) == []
    assert columns_but_of(cases, [axis for axis in AXES if axis != "sync"]) == ["sync", "sync.f.policy.wait_s"]
