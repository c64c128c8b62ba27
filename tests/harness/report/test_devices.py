"""Which GPU of a run is named as the slow one."""

from math import nan
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from harness.report.devices import _without_one, slow_gpus
from harness.report.frame import Run


def rows(*gpus: dict[str, Any]) -> pd.DataFrame:
    usual = {"case_id": "case", "launch": 0, "samples": 100, "idle": 0, "sm_mhz_median": 1980.0, "power_w_max": 650.0}
    usual |= {"temperature_c_max": 60.0, "slowed_by_power": 0.0, "slowed_by_heat": 0.0, "slowed_by": ""}
    return pd.DataFrame([{**usual, "rank": rank, "uuid": f"gpu{rank}", **gpu} for rank, gpu in enumerate(gpus)])


def named(table: pd.DataFrame, *models: str) -> list[str]:
    environment = {"ranks": [{"device_name": model} for model in models or ("H200",) * len(table)]}
    return list(slow_gpus(table, cast(Run, SimpleNamespace(environment=environment))))


HOT = {"slowed_by_heat": 0.4, "slowed_by": "HwThermalSlowdown 40.0%"}


@pytest.mark.parametrize("clock", [1885.0, 1980.0, 2100.0, float("nan")])
def test_gpus_within_five_percent_are_not_named(clock: float) -> None:
    assert named(rows({}, {"sm_mhz_median": clock}, {})) == []


def test_a_slow_gpu_is_named_with_its_figures() -> None:
    (said,) = named(rows({}, {"sm_mhz_median": 1410.0, **HOT}, {}, {}))
    assert said == (
        "Rank 1's GPU ran at a median SM clock of 1410 MHz in case, 28.8% below the others' 1980 MHz "
        "(clocks reduced: HwThermalSlowdown 40.0%; 650 W at most; 60 C at most; 100 samples)."
    )


def test_of_several_slow_gpus_the_worst_is_named_and_the_others_are_counted() -> None:
    (said,) = named(rows({}, {"sm_mhz_median": 1500.0}, {"sm_mhz_median": 990.0}, {}, {}, {}))
    assert said.startswith("Rank 2's GPU ran at a median SM clock of 990 MHz")
    assert said.endswith("1 other rank likewise.")


def test_a_gpu_that_all_are_as_slow_as_is_named_where_it_was_held_down() -> None:
    (said,) = named(rows({"sm_mhz_median": 1400.0, **HOT}, {"sm_mhz_median": 1400.0, **HOT, "slowed_by_heat": 0.2}))
    assert said.startswith("Rank 0's GPU ran at reduced clocks in case, at a median of 1400 MHz (clocks reduced: HwThermal")
    assert said.endswith("1 other rank likewise.")


def test_a_gpu_is_held_against_others_of_its_model_and_against_no_rank_that_shares_it() -> None:
    assert named(rows({}, {"sm_mhz_median": 1410.0}), "H200", "L4") == []
    assert named(rows({"uuid": "same"}, {"uuid": "same", "sm_mhz_median": 1410.0})) == []
    assert named(rows({}, {"sm_mhz_median": 1410.0, "case_id": "other"})) == [], "nor against another case"


def test_the_median_of_the_others_is_that_of_all_but_one() -> None:
    for values in ([5.0], [5.0, 7.0], [3.0, 3.0, 9.0], [8.0, 1.0, 4.0, 2.0, 4.0]):
        others = [median(values[:place] + values[place + 1 :]) if len(values) > 1 else nan for place in range(len(values))]
        assert _without_one(pd.Series(values)) == pytest.approx(others, nan_ok=True)
