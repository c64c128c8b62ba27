"""The collective sweep: in a real world of two ranks, and on machines that cannot do all of it."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import get_args
from unittest.mock import MagicMock, patch

import pandas as pd
import pytest
import torch

from harness.probes.base import Machine, Way
from harness.probes.collectives import CollectivesProbe
from harness.probes.transfer import DTYPES, Dtype, Transfer
from harness.report.collectives import SETTING, collectives
from harness.report.frame import Run
from harness.report.render import show
from harness.schema.record import NOT_MEASURED, Observation, Timing
from tests.conftest import Measure, shown

BROKEN = '''"""A collective that is wrong on rank 1 from 16 bytes on, and a machine that turns out to have none."""

from dataclasses import replace
from functools import partial
from unittest.mock import MagicMock, patch

from harness.probes import collectives
from harness.probes.base import CannotError, Probe, Question
from harness.probes.collectives import CollectivesProbe
from harness.probes.transfer import Transfer


class WrongTransfer(Transfer):
    def call(self):
        super().call()
        if self.rank == 1 and self.setting.bytes == 16:
            self._parcels[-1][0][-1] += 1


class WrongProbe(CollectivesProbe):
    def questions(self, machine):
        return [replace(question, ask=partial(_wrong, question.ask)) for question in super().questions(machine)]


def _wrong(ask):
    with patch.object(collectives, "Transfer", WrongTransfer):
        yield from ask()


class CannotProbe(Probe):
    def questions(self, machine):
        return [Question("anything", self._ask)]

    def _ask(self):
        raise CannotError("no such thing here")
'''


@pytest.fixture(scope="module")
def swept(measure: Measure) -> Run:
    small = ("least_bytes=4", "most_bytes=65536", "beside_bytes=64", "iterations=3", "warm_up=1", "back_to_back=2")
    keys = [f"probe.collectives.{key}" for key in (*small, f"dtypes=[{','.join(DTYPES)}]")]
    finished = shown(measure("experiment=all_reduce_sweep", "iterations=2", *keys))
    assert "Collective: reduce_scatter, bfloat16" in finished.output
    return finished.run


def test_every_size_way_and_rank_has_its_raw_numbers(swept: Run) -> None:
    rows = swept.collectives
    for clock, calls in (("host", 4), ("host_back_to_back", 2)):
        counted = rows[rows["clock"] == clock].groupby([*SETTING, "rank"], observed=True).size()
        assert len(counted) == 2 * (swept.probes.status == "ok").sum()
        assert (counted == calls).all(), "warm-up and iterations; calls in a row a quarter as often"
    assert set(rows["clock"].astype(str)) == {"host", "host_back_to_back"}
    assert (rows.groupby("iteration").warm_up.nunique() == 1).all()
    assert set(rows.iteration[rows.warm_up.astype(bool)]) == {0}
    assert set(rows["rank"]) == {0, 1}
    first = rows[(rows.dtype == "float32") & (rows.collective == "all_reduce") & (rows.in_flight == 1)]
    assert sorted(set(first.bytes)) == [2**power for power in range(2, 17)]
    assert rows[rows.dtype != "float32"].bytes.max() == 64
    assert set(rows.dtype) == set(DTYPES)
    assert set(rows.collective) == {"all_reduce", "reduce_scatter", "all_gather"}


def test_every_setting_is_checked_and_what_torch_has_not_is_told(swept: Run) -> None:
    skipped = swept.probes[swept.probes.status == "skipped"]
    assert set(skipped.reason) == {"torch's all_reduce works in place"}
    assert len(skipped) == 2 * len(DTYPES)
    assert set(swept.probes.status) == {"ok", "skipped"}
    rows = collectives(swept)
    rows = rows[rows["clock"] == "host"]
    assert len(rows) == (swept.probes.status == "ok").sum()
    received = rows["count"] * rows.in_flight * rows.collective.map({"all_gather": 2}).fillna(1)
    assert (rows.elements_checked == 2 * 2 * received).all()  # by two ranks, before and after


def test_the_report_has_a_picture_and_a_file(swept: Run) -> None:
    report = swept.path / "report"
    assert (report / "busbw.png").read_bytes().startswith(b"\x89PNG")
    assert "busbw_gbs" in pd.read_csv(report / "collectives.csv")
    page = (report / "report.md").read_text()
    assert "Probe: collectives" not in page
    assert "in place: in a row, us" in page


def test_a_wrong_result_fails_its_setting_alone(measure: Measure, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "probe"
    conf.mkdir(parents=True)
    (tmp_path / "conf" / "broken.py").write_text(BROKEN)
    (conf / "wrong.yaml").write_text(
        "wrong: {_target_: broken.WrongProbe, collectives: [all_reduce], in_place: [true], most_bytes: 32, iterations: 2}\n"
    )
    (conf / "cannot.yaml").write_text("cannot: {_target_: broken.CannotProbe}\n")
    asked = ("experiment=all_reduce_sweep", "probe=[wrong,cannot]", "iterations=2")
    run = measure(*asked, "--config-dir", str(tmp_path / "conf"))
    assert show([run.path]), "what failed is a status of 1"
    status = run.probes.set_index("subject").status
    assert status["anything"] == "skipped"
    wrong = run.probes[run.probes.status == "failed"]
    assert list(wrong.subject) == ["all_reduce float32, in place, 16 B", "all_reduce float32, in place, 4 in flight, 16 B"]
    assert wrong.reason.str.match(r"rank 1 on \S+, in phase ask: WrongResultError: 1 of 4 elements are wrong").all()
    assert (status.drop(["anything", *wrong.subject]) == "ok").all()
    assert set(run.collectives.bytes) == {4, 8, 32}


def probe_of(in_a_row: Callable[..., Iterator[Way]], size: int, in_flight: int) -> tuple[CollectivesProbe, Machine]:
    """A sweep of one setting, on a machine with these ways of making calls in a row."""
    machine = Machine(**{field.name: None for field in fields(Machine)} | {"in_a_row": in_a_row})  # type: ignore[arg-type]
    machine = replace(machine, rank=0, size=2, device=torch.device("cpu"), measured=lambda: None, meet=lambda: None, seed=0)
    machine = replace(machine, free_bytes=lambda: 2**40, time=lambda call: {"host": 1.0})
    keys = {"least_bytes": size, "most_bytes": size, "beside_bytes": size}
    return CollectivesProbe(collectives=["all_reduce"], in_place=[True], in_flight=[in_flight], **keys), machine


def test_ways_are_closed_while_an_error_is_on_its_way() -> None:
    """The groups are left in the handler of the error, and NCCL waits there for a CUDA graph that is not reset."""
    closed = []

    def in_a_row(call: Callable[[], None], count: int) -> Iterator[Way]:
        try:
            yield Way("cuda_graph", MagicMock(side_effect=RuntimeError("NCCL gave up")))
        finally:
            closed.append(1)

    probe, machine = probe_of(in_a_row, 4, 1)
    (question,) = probe.questions(machine)
    with patch.object(Transfer, "prove", lambda *arguments: 1):
        try:
            list(question.ask())
        except RuntimeError:
            assert closed
        else:
            pytest.fail("the error is lost")


@pytest.mark.parametrize(
    ("size", "in_flight", "calls"), [(4, 1, 10), (2**20, 1, 10), (2**20, 4, 2), (2**21, 1, 5), (2**26, 1, 2)]
)
def test_large_messages_are_sent_less_often_in_a_row(size: int, in_flight: int, calls: int) -> None:
    """Each call is made by the machine's own way; the number of calls depends on what all ranks know."""
    counts, times = [], iter([9.0, 1.0, 2.0, nan, 4.0])

    def in_a_row(call: Callable[[], None], count: int) -> Iterator[Way]:
        counts.append(count)
        yield Way("cuda_back_to_back", lambda: next(times))
        yield Way("cuda_graph", None, "no graphs here")

    probe, machine = probe_of(in_a_row, size, in_flight)
    with patch.object(Transfer, "prove", lambda *arguments: 1):
        seen = [one for question in probe.questions(machine) for one in question.ask()]
    assert counts == [calls]
    rows = [one for one in seen if isinstance(one, Timing) and one.clock == "cuda_back_to_back"]
    assert [(row.iteration, row.warm_up, row.seconds) for row in rows] == [
        (0, True, 9.0),
        (1, False, 1.0),
        (2, False, 2.0),
        (4, False, 4.0),
    ]
    reasons = [(one.setting, one.text) for one in seen if isinstance(one, Observation) and one.quantity == NOT_MEASURED]
    assert reasons == [("cuda_graph", "no graphs here")], "a clock without any number says why"


def test_what_does_not_fit_is_skipped_with_its_reason() -> None:
    probe = CollectivesProbe(collectives=["all_gather"], in_place=[False], in_flight=[4], least_bytes=16, most_bytes=128)
    questions = probe.questions(SimpleNamespace(size=2, free_bytes=lambda: 1000))
    assert [question.unsupported for question in questions] == [
        None,
        None,
        None,
        "its buffers take 768 B, and 500 B are left for them",
    ]


def test_one_rank_has_nobody_to_send_to() -> None:
    questions = CollectivesProbe().questions(SimpleNamespace(size=1, free_bytes=lambda: 2**40))
    assert len(questions) == 12
    assert all("one rank" in str(question.unsupported) for question in questions)


def test_the_names_of_dtypes_are_those_that_are_known() -> None:
    assert get_args(Dtype) == tuple(DTYPES)
