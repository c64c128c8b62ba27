"""Loss and gradient norm of a case, and norms by group of parameters."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.amp import GradScaler

from harness.numerics.discrepancy import compare_all
from harness.rank.casework import CaseWork, _with_norms
from harness.rank.loop import Loop
from harness.rank.losses import LossRecord
from harness.rank.norms import group_of, norms
from harness.schema.record import OK, Outcome
from tests.conftest import Finished, Measure

NAMES = ("embed.weight", "layers.0.attn.weight", "layers.0.attn.bias", "layers.1.attn.weight", "scale")
GROUPS = {"embed": [0], "layers.0": [1, 2], "layers.1": [3], "scale": [4]}


def gradients() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    value = [torch.randn(7, size, generator=generator) for size in range(1, 1 + len(NAMES))]
    return value, [tensor.double() + 1e-3 * torch.randn(tensor.shape, generator=generator) for tensor in value]


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.cat([tensor.double().flatten() for tensor in tensors])))


@pytest.mark.parametrize(
    ("parameter", "group"),
    [
        ("layers.17.attn.weight", "layers.17"),
        ("encoder.layers.3.mlp.1.bias", "encoder.layers.3"),
        ("head.weight", "head"),
        ("head.norm.weight", "head"),
        ("0.weight", "0"),
        ("scale", "scale"),
        ("layer2.weight", "layer2"),
    ],
)
def test_a_parameter_is_of_the_module_up_to_the_first_number(parameter: str, group: str) -> None:
    assert group_of(parameter) == group


def test_norms_are_those_of_the_concatenated_gradients_and_groups_add_up() -> None:
    value, against = gradients()
    whole, *rows = norms("case", *compare_all(zip(NAMES, value, strict=True), zip(NAMES, against, strict=True)))
    assert [row.group for row in rows] == list(GROUPS)
    for row, places in ((whole, list(range(len(NAMES)))), *((row, GROUPS[row.group]) for row in rows)):
        mine, theirs = [value[place] for place in places], [against[place] for place in places]
        apart = norm_of([one.double() - other for one, other in zip(mine, theirs, strict=True)])
        assert row.num_parameters == sum(one.numel() for one in mine)
        expected = (norm_of(mine), norm_of(theirs), apart, apart / norm_of(theirs))
        assert (row.norm, row.reference_norm, row.l2, row.relative_l2) == pytest.approx(expected, rel=1e-12)
    for column in ("norm", "reference_norm", "l2"):
        assert sum(getattr(row, column) ** 2 for row in rows) == pytest.approx(getattr(whole, column) ** 2, rel=1e-12)


@pytest.mark.parametrize(("element", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
def test_a_group_that_is_not_finite_shows_it_and_no_other_group_does(element: float, shown: str) -> None:
    value, against = gradients()
    value[2][3, 1] = element
    whole, *rows = norms("case", *compare_all(zip(NAMES, value, strict=True), zip(NAMES, against, strict=True)))
    assert {row.group: str(row.norm) for row in rows if not math.isfinite(row.norm)} == {"layers.0": shown}
    assert (str(whole.norm), str(whole.relative_l2)) == (shown, shown)
    assert math.isfinite(whole.reference_norm)


def test_a_reference_that_is_not_finite_leaves_the_norm_unknown() -> None:
    value, against = gradients()
    against[1][0, 0] = math.inf
    whole, *_ = norms("case", *compare_all(zip(NAMES, value, strict=True), zip(NAMES, against, strict=True)))
    assert math.isnan(whole.norm)
    assert whole.reference_norm == math.inf


def test_a_loss_is_recorded_while_listening_only_and_keeps_no_graph() -> None:
    record, parameter = LossRecord(None), torch.ones(3, requires_grad=True)
    record.note(parameter.sum(), 1.0)
    assert math.isnan(record.value)
    with record.listening():
        record.note((parameter * torch.arange(3)).bfloat16(), 2.0)
        record.note(parameter.sum(), 4.0)
        assert not any(losses.requires_grad for losses, _ in record._noted)
    record.note(parameter.sum(), 1.0)
    assert record.value == 3 / 2 + 3 / 4
    assert record.recorded and not LossRecord(None).recorded
    assert not record._noted


def test_a_scaled_loss_is_unscaled_by_the_scale_that_it_was_scaled_with() -> None:
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    record = LossRecord(scaler)
    with record.listening():
        record.note(scaler.scale(torch.tensor(3.0)), 1.0)
        scaler.update(2.0)
    assert record.value == 3.0


@pytest.mark.parametrize(("sent", "losses"), [([(0.0, 0), (2.0, 1)], [0.0, 2.0]), ([(0.0, 0), (math.nan, 0)], [])])
def test_a_loss_that_no_rank_has_recorded_has_no_reference(sent: list[tuple[float, int]], losses: list[float]) -> None:
    """A rank without samples records none, either."""
    gathered = [torch.tensor(pair, dtype=torch.float64) for pair in sent]
    work = SimpleNamespace(world=SimpleNamespace(control=SimpleNamespace(gather=lambda own: gathered)))
    found = CaseWork._losses(cast(Any, work), cast(Any, SimpleNamespace(loss=0.0, loss_recorded=False)))
    assert found == losses
    compared = SimpleNamespace(norms=[SimpleNamespace(norm=1.0, reference_norm=1.0)], reference_loss=3.0)
    outcome = _with_norms(Outcome("case", OK), cast(Any, compared), found[1] if found else None)
    assert math.isnan(outcome.loss) == math.isnan(outcome.reference_loss) == (not losses)


@pytest.mark.parametrize(
    ("warm_up", "measured", "batches", "heard"),
    [(2, 5, 1, 5), (0, 5, 1, 0), (2, 4, 2, 4), (2, 5, 2, 6), (1, 5, 2, 0), (1, 1, 1, 1)],
)
def test_the_recorded_iteration_is_of_the_compared_batch_and_untimed_if_one_is(
    warm_up: int, measured: int, batches: int, heard: int
) -> None:
    """`heard`: iterations after it; those before it are more than the measured ones where it is untimed."""
    listening: list[bool] = []
    record = LossRecord(None)
    rig = SimpleNamespace(model=None, phases=[[]] * batches, loss=record)
    pace = SimpleNamespace(begin=lambda: None, verdict=lambda made: "enough", left=lambda made: 0)
    watch = SimpleNamespace(columns=[("step", "host")], time=lambda phases: (listening.append(record._listens), [0.0])[1])
    loop = Loop(torch.device("cpu"), cast(Any, rig), cast(Any, watch), cast(Any, pace), None, lambda model, run: run())
    loop.run(warm_up, measured)
    assert [left for left, heard in enumerate(reversed(listening)) if heard] == [heard]


def test_every_reduction_in_float32_has_the_loss_of_its_reference(every_mode: Finished) -> None:
    cases = every_mode.run.cases[every_mode.run.cases.status == "ok"]
    other_function = every_mode.run.findings.case_id[every_mode.run.findings.kind == "other_function"]
    alike = cases[~cases.case_id.isin(other_function)]
    assert set(alike.reduction) == set(every_mode.run.config.reduction)
    assert ((alike.loss - alike.reference_loss).abs() < 1e-6 * alike.reference_loss).all()
    assert ((alike.gradient_norm - alike.reference_gradient_norm).abs() < 1e-6 * alike.reference_gradient_norm).all()
    assert ((cases.loss - cases.reference_loss).abs()[cases.case_id.isin(other_function)] > 1e-4).all()
    whole = every_mode.run.norms[every_mode.run.norms.group == ""].set_index("case_id")
    assert (whole.norm[cases.case_id].to_numpy() == cases.gradient_norm.to_numpy()).all()
    assert (whole.num_parameters[cases.case_id].to_numpy() == cases.num_parameters.to_numpy()).all()


def test_what_a_fault_makes_of_loss_and_norm(measure: Measure) -> None:
    """A fault in the sum over ranks changes the gradient alone; one in the denominator or the samples, the loss as well."""
    asked = ("fault=[none,double_division,missing_division,dropped_input]", "aggregation=[all_reduce,local]")
    few = ("iterations=1", "warm_up=0", "global_batch_size=12", "precision=[fp64]", "sharding=[uneven]", "reduction=[sum]")
    run = measure("workload=[mlp_digits]", *asked, *few)
    of = {(case.fault, case.aggregation): case for case in run.cases.itertuples()}
    right, alone = of["none", "all_reduce"], of["none", "local"]
    assert right.loss == pytest.approx(right.reference_loss, rel=1e-12)
    assert right.gradient_norm == pytest.approx(right.reference_gradient_norm, rel=1e-12)
    double, missing, dropped = (of[f, "all_reduce"] for f in ("double_division", "missing_division", "dropped_input"))
    assert double.loss == right.loss
    assert double.gradient_norm == pytest.approx(right.gradient_norm / 2, rel=1e-12)
    assert missing.loss == pytest.approx(2 * right.loss, rel=1e-12)
    assert missing.gradient_norm == pytest.approx(2 * right.gradient_norm, rel=1e-12)
    assert abs(dropped.loss - right.loss) > 1e-6
    assert {case.reference_loss for case in (right, double, missing, dropped)} == {right.reference_loss}
    assert alone.loss == pytest.approx(alone.reference_loss, rel=1e-12)  # rank 0's own shard
    assert abs(alone.loss - right.loss) > 1e-6
    assert of["dropped_input", "local"].loss != pytest.approx(alone.loss, rel=1e-6)
