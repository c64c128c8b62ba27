"""The shipped workloads: real data, as they say."""

from pathlib import Path

import pytest
import torch
from torch import nn

from harness.axes.workload.base import Batch, Criterion, Workload, coupling, draw, fingerprint
from harness.rank.material import prepare
from harness.schema.refusal import RefusedError
from tests.conftest import Measure
from tests.options import make
from tests.skips import unknown
from tests.worlds import odd_data

WORKLOADS = make("workload")


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_depends_on_the_seed_alone(name: str) -> None:
    workload = WORKLOADS[name]
    torch.manual_seed(123)
    first, second, other = (workload.build_model(seed) for seed in (1, 1, 2))
    equal = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(equal)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    data = workload.load_data(1)
    assert fingerprint(draw(data, 8, 1)) == fingerprint(draw(workload.load_data(2), 8, 1)) != fingerprint(draw(data, 8, 2))
    with pytest.raises(ValueError, match="global_batch_size"):
        draw(data, len(data) + 1, 0)


def test_digits() -> None:
    data = WORKLOADS["mlp_digits"].load_data(0)
    assert data.inputs[0].shape == (1797, 1, 8, 8)
    assert (data.inputs[0].min(), data.inputs[0].max()) == (0, 1)
    assert sorted(set(data.target.tolist())) == list(range(10))
    assert coupling(WORKLOADS["cnn_digits"].build_model(0)) == ("BatchNorm",)
    assert coupling(WORKLOADS["dropout_digits"].build_model(0)) == ("dropout",)
    assert coupling(WORKLOADS["mlp_digits"].build_model(0)) == ()


def test_topics_are_different_sequences_of_unequal_length_at_least_a_quarter_padded() -> None:
    workload = WORKLOADS["transformer_topics"]
    data = workload.load_data(0)
    (tokens,) = data.inputs
    lengths = (data.target != -100).sum(1)
    assert len(data) > 1000
    assert len({tuple(row) for row in torch.cat([tokens, data.target[:, -1:]], 1).tolist()}) > 0.9 * len(data)
    assert len(set(lengths.tolist())) > 50
    assert (lengths < tokens.shape[1]).double().mean() >= 0.25
    assert ((tokens == 256) == (data.target == -100)).all(), "padding is padding in both"
    assert (tokens[:, 1:][lengths == tokens.shape[1]] == data.target[:, :-1][lengths == tokens.shape[1]]).all(), (
        "the target is the next byte"
    )


def test_padding_changes_neither_loss_nor_gradient() -> None:
    workload = WORKLOADS["transformer_topics"]
    model, batch = workload.build_model(0).double(), draw(workload.load_data(0), 8, 0)
    (tokens,), criterion = batch.inputs, workload.build_criterion()
    noise = tokens.where(tokens != 256, torch.randint(256, tokens.shape, generator=torch.Generator().manual_seed(0)))
    losses = [criterion.sum(model(x), batch.target) for x in (tokens, noise)]
    assert losses[0] == losses[1]
    gradients = [torch.autograd.grad(loss, model.head.weight)[0] for loss in losses]
    assert torch.equal(*gradients)


def test_terms_are_what_the_mean_divides_by() -> None:
    target = torch.tensor([[0, 1, -100], [2, -100, -100], [-100, -100, -100]])
    logits = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    for given, terms in ((None, [2, 1, 0]), (weight, [3, 4, 0])):
        criterion = Criterion(lambda reduction, given=given: torch.nn.CrossEntropyLoss(weight=given, reduction=reduction))
        assert criterion.terms(target).tolist() == terms
        assert float(criterion.sum(logits, target) / criterion.mean(logits, target)) == pytest.approx(sum(terms), rel=1e-12)
    assert Criterion(torch.nn.MSELoss).terms(torch.zeros(3, 2)).tolist() == [2, 2, 2]
    probabilities = torch.softmax(logits, 1)
    assert Criterion(torch.nn.CrossEntropyLoss).terms(probabilities).tolist() == [3, 3, 3]


def test_a_loss_may_count_by_itself() -> None:
    class Halves:
        def __init__(self, reduction: str) -> None: ...
        def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return output

        def terms(self, target: torch.Tensor) -> list[float]:
            return [0.5] * len(target)

    assert Criterion(Halves).terms(torch.zeros(3)).tolist() == [0.5, 0.5, 0.5]


def test_batches_are_cut_and_cast_together() -> None:
    batch = Batch((torch.arange(4.0), torch.arange(4)), torch.arange(4))[1:3].to(torch.device("cpu"), torch.float64)
    assert (len(batch), batch.inputs[0].dtype, batch.inputs[1].dtype) == (2, torch.float64, torch.int64)


@pytest.mark.parametrize("target", odd_data.TARGETS)
def test_targets_of_any_strides_and_dtype_are_served(target: str) -> None:
    workload = Workload(model=odd_data.linear, loss=nn.MSELoss, data=lambda: (odd_data.plain()[0], odd_data.TARGETS[target]()))
    assert prepare(workload, "odd", 0, 8).data_samples == odd_data.SAMPLES


@pytest.mark.parametrize("kind", odd_data.REFUSED)
def test_what_is_no_dense_tensor_is_refused_by_name(kind: str) -> None:
    workload = Workload(model=odd_data.linear, loss=nn.MSELoss, data=lambda: (odd_data.plain()[0], odd_data.REFUSED[kind]()))
    with pytest.raises(RefusedError, match=f"the target is {kind}; accepted: .*dense tensors"):
        prepare(workload, "odd", 0, 8)


def test_complex_parameters_are_refused_by_name() -> None:
    with pytest.raises(RefusedError, match="weight is complex64; accepted: real parameters"):
        prepare(Workload(model=odd_data.Complex, loss=nn.MSELoss, data=odd_data.plain), "odd", 0, 8)


def test_lazy_modules_get_their_parameters_from_the_seed() -> None:
    workload = Workload(model=odd_data.lazy, loss=nn.MSELoss, data=odd_data.plain)
    first = prepare(workload, "odd", 1, 8)
    torch.rand(3)  # what was drawn before does not matter
    again, other = (prepare(workload, "odd", seed, 8) for seed in (1, 2))
    weights = [material.model.state_dict() for material in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["0.weight"], weights[2]["0.weight"])
    assert weights[0]["0.weight"].shape == (5, odd_data.FEATURES)
    assert [module.training for module in first.model] == [True, False, True, True]
    assert not weights[0]["1.running_mean"].any(), "the forward leaves no trace"


def test_sparse_gradients_are_skipped_or_fail_by_name_in_one_world(measure: Measure, tmp_path: Path) -> None:
    for name, model, data in (("sparse", "Sparse", "words"), ("inside", "SparseInside", "words"), ("lazy", "lazy", "plain")):
        write_workload(tmp_path, name, model, data)
    few = ("reduction=[mean]", "aggregation=[all_reduce,ddp]", "global_batch_size=8", "iterations=1")
    run = measure(f"--config-dir={tmp_path}", "workload=[sparse,inside,lazy]", *few)
    cases = run.cases.set_index("workload")
    assert cases.status.groupby(level=0, observed=True).unique().map(list).to_dict() == {
        "inside": ["failed"],
        "lazy": ["ok"],
        "sparse": ["skipped"],
    }
    assert unknown(cases.reason["sparse"]) == []
    assert cases.reason["inside"].str.contains("sparse").all()
    few = ("reduction=[mean]", "sharding=[empty_rank]", "global_batch_size=8", "iterations=1")
    (reason,) = measure(f"--config-dir={tmp_path}", "workload=[inside]", *few).cases.reason
    assert all(f"rank {rank}" in reason for rank in (0, 1))
    assert reason.count("ValueError: the gradient of a parameter of shape (9, 4) is sparse_coo") == 2
    assert "Timed out" not in reason, "the rank without samples waits for nobody"


def test_what_has_no_deterministic_algorithm_is_skipped_by_name(measure: Measure, tmp_path: Path) -> None:
    write_workload(tmp_path, "putting", "Putting", "plain")
    few = ("reduction=[mean]", "determinism=[default,deterministic]", "global_batch_size=8", "iterations=1")
    run = measure(f"--config-dir={tmp_path}", "workload=[putting,mlp_digits]", *few)
    assert run.cases.set_index(["workload", "determinism"]).status.to_dict() == {
        ("putting", "default"): "ok",
        ("putting", "deterministic"): "skipped",
        ("mlp_digits", "default"): "ok",
        ("mlp_digits", "deterministic"): "ok",
    }
    (reason,) = run.cases.reason[run.cases.status == "skipped"]
    assert reason == "torch has no deterministic algorithm for put_ on this device"


def write_workload(folder: Path, name: str, model: str, data: str) -> None:
    """Configure a workload of `tests.worlds.odd_data`."""
    (folder / "workload").mkdir(exist_ok=True)
    makers = f"model: {{_target_: tests.worlds.odd_data.{model}, _partial_: true}}\n  "
    makers += f"data: {{_target_: tests.worlds.odd_data.{data}, _partial_: true}}\n  "
    loss = "loss: {_target_: torch.nn.MSELoss, _partial_: true}\n"
    text = f"{name}:\n  _target_: harness.axes.workload.base.Workload\n  {makers}{loss}"
    (folder / "workload" / f"{name}.yaml").write_text(text)
