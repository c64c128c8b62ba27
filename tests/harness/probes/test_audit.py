"""`harness.probes.audit` on steps of one process, and on the documented script."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.probes import audit
from harness.probes.diagnosis.explain import Explanation
from tests.running import ROOT, torchrun
from tests.worlds.pool import Pool

SCRIPT = ROOT / "docs" / "example" / "audit.py"
Batch = tuple[Tensor, Tensor]


def each_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    inputs, target = batch
    return functional.cross_entropy(model(inputs), target, reduction="none"), len(target)


def summed_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
    losses, counted = each_loss(model, batch)
    return losses.sum(), counted


def batch_of(samples: int, features: int = 8, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, features, generator=generator), torch.randint(classes, (samples,), generator=generator)


def classifier(*, normalized: bool = False, features: int = 8) -> nn.Module:
    torch.manual_seed(0)
    between: nn.Module = nn.BatchNorm1d(16) if normalized else nn.ReLU()
    return nn.Sequential(nn.Linear(features, 16), between, nn.Linear(16, 3))


def weighted(model: nn.Module, batch: Batch, weights: Tensor) -> Callable[[], None]:
    """A step in which sample i has weight weights[i]."""

    def step() -> None:
        losses, _ = each_loss(model, batch)
        (losses * weights.to(losses.dtype)).sum().backward()

    return step


def verdict_on(weights: Tensor, model: nn.Module, batch: Batch, loss: Callable[..., tuple[Tensor, float]]) -> Explanation:
    return audit(model, loss, batch, weighted(model, batch, weights / len(batch[1])))


@pytest.mark.parametrize("loss", [each_loss, summed_loss])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_right_step_is_right(normalized: bool, loss: Callable[..., tuple[Tensor, float]]) -> None:
    found = verdict_on(torch.ones(12), classifier(normalized=normalized), batch_of(12), loss)
    assert (found.verdict, found.clean) == ("rounding", True)
    assert "nothing to do" in str(found).lower()


def test_a_lost_sample_is_named() -> None:
    weights = torch.ones(12)
    weights[5] = 0
    for model, loss in ((classifier(), summed_loss), (classifier(), each_loss), (classifier(normalized=True), each_loss)):
        found = verdict_on(weights, model, batch_of(12), loss)
        assert (found.verdict, found.cause, found.rank, found.sample) == ("weighting", "dropped_sample", 0, 5)
        sample = next(weight for weight in found.weights if weight.sample == 5)
        assert abs(sample.weight) < 1e-5
        assert sample.expected == pytest.approx(1 / 12)


def test_samples_that_influence_each_other_are_told_apart_by_unreduced_losses_alone() -> None:
    weights = torch.ones(12)
    weights[5] = 0
    found = verdict_on(weights, classifier(normalized=True), batch_of(12), summed_loss)
    assert found.verdict == "unexplained"


@pytest.mark.parametrize(("factor", "words"), [(12.0, "N, what the loss"), (2.0, "counted twice"), (1.37, "none of W")])
def test_a_factor_is_told(factor: float, words: str) -> None:
    found = verdict_on(factor * torch.ones(12), classifier(), batch_of(12), summed_loss)
    assert found.verdict == "scale"
    assert found.factor == pytest.approx(factor, rel=1e-6)
    assert words in found.statement


def test_more_samples_than_parameters_have_no_weights_of_their_own_and_the_mistake_still_has_a_name() -> None:
    model = nn.Linear(2, 3)
    batch, weights = batch_of(40, features=2), torch.ones(40)
    weights[7] = 0
    found = verdict_on(weights, model, batch, summed_loss)
    assert "dropped_sample" in found.cause
    assert (found.rank, found.sample) == (0, 7)
    own = [weight for weight in found.weights if weight.sample >= 0]
    assert own
    assert all(weight.weight != weight.weight for weight in own), "40 samples, 9 parameters: not identifiable"


def test_of_equal_samples_only_the_sum_of_their_weights_is_known() -> None:
    inputs, target = batch_of(10)
    inputs[7], target[7] = inputs[2], target[2]
    weights = torch.ones(10)
    weights[7] = 0
    found = verdict_on(weights, classifier(), (inputs, target), summed_loss)
    assert (found.verdict, found.confidence) == ("weighting", "ambiguous")
    assert "sample 2" in found.statement
    assert "sample 7" in found.statement
    both = {weight.sample: weight for weight in found.weights if weight.sample in (2, 7)}
    assert both[7].same_as == 2


def test_a_trained_model_is_right_all_the_same() -> None:
    model, batch = classifier(), batch_of(12)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=400)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses, counted = each_loss(model, batch)
        (mean := losses.sum() / counted + 1e-3 * sum(p.square().sum() for p in model.parameters())).backward()
        return mean

    optimizer.step(closure)
    found = verdict_on(torch.ones(12), model, batch, each_loss)
    assert found.clean, found
    weights = torch.ones(12)
    weights[0] = 0
    assert verdict_on(weights, model, batch, each_loss).verdict in ("weighting", "scale")


def test_a_step_that_never_leaves_the_same_is_told() -> None:
    model, batch = classifier(), batch_of(12)
    right, calls = weighted(model, batch, torch.ones(12) / 12), count()

    def step() -> None:
        right()
        bias = model[2].bias.grad
        if next(calls) % 2:
            torch.nextafter(bias, bias + 1, out=bias)

    found = audit(model, summed_loss, batch, step)
    assert (found.verdict, found.confidence) == ("non_deterministic", "proved")


def test_what_the_caller_holds_is_left_as_it_was() -> None:
    model, batch = classifier(normalized=True), batch_of(12)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit(model, each_loss, batch, lambda: None, warm_up=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_layers_that_are_frozen_stay_so_in_the_copies() -> None:
    model = classifier(normalized=True)
    model[1].eval()
    assert verdict_on(torch.ones(12), model, batch_of(12), each_loss).verdict == "rounding"


def test_a_batch_that_cannot_be_cut_is_taken_whole() -> None:
    found = verdict_on(torch.ones(2), classifier(normalized=True), batch_of(2), each_loss)
    assert found.clean, found


def test_a_model_that_draws_numbers_is_refused() -> None:
    model = nn.Sequential(classifier(), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="draws numbers"):
        audit(model, each_loss, batch_of(12), lambda: None)


def test_a_gradient_that_is_not_finite_is_told() -> None:
    found = verdict_on(torch.full((12,), float("inf")), classifier(), batch_of(12), each_loss)
    assert (found.verdict, found.cause) == ("unexplained", "nonfinite")


def test_a_model_without_a_gradient_is_refused() -> None:
    model = classifier().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        audit(model, summed_loss, batch_of(4), lambda: None)


@pytest.mark.parametrize("ranks", [2])
def test_a_step_that_leaves_other_bits_on_another_rank_is_told_on_rank_0(worlds: Pool, ranks: int) -> None:
    assert worlds.run(ranks, "tests.worlds.audits:other_bits_on_rank_1") == ["non_deterministic", "proved"]


@pytest.mark.parametrize("ranks", [2])
def test_a_rank_whose_step_raises_leaves_at_once(worlds: Pool, ranks: int) -> None:
    """Waiting for the others, it would deadlock with a rank that waits for it in the step's own collective."""
    errors = worlds.run(ranks, "tests.worlds.audits:a_step_that_raises_on_rank_1")
    assert errors == ["planted on rank 0", "planted on rank 1"]


UNSEEN = {"precision", "cannot_tell"}
IN_BFLOAT16: list[tuple[dict[str, Any], set[str]]] = [
    *(({"how": how}, {"precision"}) for how in ("autocast", "passes", "hook", "fsdp_reduce", "fsdp_compute")),
    *(({"how": how, "model": "transformer"}, UNSEEN) for how in ("autocast", "passes", "fsdp_compute")),
    ({"factor": 1.01}, {"scale", *UNSEEN}),
    *(({"factor": factor}, {"scale"}) for factor in (1.03, 1.3)),
    *(({"samples": (32, other), "own_means": True}, {"weighting"}) for other in (28, 24)),
    *(
        ({"samples": (32, 31), "own_means": True, "model": model}, {"weighting", "cannot_tell"})
        for model in ("mlp", "transformer")
    ),
    ({"samples": (128, 127), "own_means": True}, {"weighting", "cannot_tell"}),
    ({"factor": 1.05, "model": "transformer"}, {"scale"}),
]
"""Steps in bfloat16, and their verdicts. Kernels differ between processors, and mistakes of 1 % are near the limit."""


@pytest.mark.parametrize("ranks", [2])
def test_a_mistake_in_bfloat16_is_named_or_cannot_be_seen_and_a_right_step_is_clean(worlds: Pool, ranks: int) -> None:
    found = worlds.run(ranks, "tests.worlds.audits:in_bfloat16", [step for step, _ in IN_BFLOAT16])
    for (step, allowed), one in zip(IN_BFLOAT16, found, strict=True):
        assert one["verdict"] in allowed, (step, one)
        assert one["clean"] == (one["verdict"] == "precision"), (step, one)
        if one["clean"]:
            assert step.get("factor", 1) - 1 < one["limit"] < 0.02
            assert "would have been seen" in one["statement"] or "every bit" in one["statement"]
        if one["verdict"] == "scale":
            assert one["factor"] == pytest.approx(step["factor"], abs=0.005)
        if one["verdict"] == "cannot_tell" and "own_means" in step:
            assert "mean of means" in one["statement"]


def test_autocast_that_nobody_states_is_seen() -> None:
    model, batch = classifier(), batch_of(12)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses, counted = each_loss(model, batch)
        (losses.sum() / counted).backward()

    found = audit(model, summed_loss, batch, step)
    assert (found.verdict, found.clean) == ("precision", True), found
    assert "bfloat16" in found.statement
    assert found.limit < 0.02


def test_gradients_that_are_rounded_are_seen() -> None:
    model, batch = classifier(), batch_of(12)

    def step() -> None:
        (each_loss(model, batch)[0].sum() / 12).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad = parameter.grad.bfloat16().float()

    found = audit(model, summed_loss, batch, step)
    assert (found.verdict, found.clean) == ("precision", True), found


@pytest.mark.parametrize("offset", [0.03, 1e-3])
def test_where_samples_cancel_bfloat16_hides_mistakes_and_nothing_is_certified(offset: float) -> None:
    """The gradient of the batch is small beside the rounding of its samples' gradients."""
    torch.manual_seed(0)
    model, inputs, signs = nn.Linear(8, 4), torch.randn(8, 8), torch.randn(8, 4)
    batch = (torch.cat([inputs, inputs]), torch.cat([signs, offset * torch.randn(8, 4) - signs]))

    def signed(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        return (model(batch[0]).float() * batch[1]).sum(1), len(batch[1])

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses, counted = signed(model, batch)
        (losses.sum() / (1.1 * counted)).backward()

    found = audit(model, signed, batch, step)
    assert (found.verdict, found.clean) == ("cannot_tell", False), found
    assert "would hide" in found.statement or "rounding alone" in found.statement


@pytest.mark.parametrize("clears", [False, True])
def test_a_step_that_updates_the_parameters_is_audited_at_its_optimizer(clears: bool) -> None:
    model, batch = classifier(), batch_of(12)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    before = copy.deepcopy(model.state_dict())

    def step() -> None:
        optimizer.zero_grad()
        (each_loss(model, batch)[0].sum() / 12).backward()
        optimizer.step()
        if clears:
            optimizer.zero_grad()

    found = audit(model, summed_loss, batch, step)
    assert (found.verdict, found.clean) == ("rounding", True), found
    assert "updates the parameters" in found.statement
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not optimizer.state, "as before its first step"


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    return each_loss(model, batch)[0].mean()


def with_closure(model: nn.Module, batch: Batch) -> Callable[[], object]:
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        (loss := mean_loss(model, batch)).backward()
        return loss

    return lambda: optimizer.step(closure)


def with_fused_scaler(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """The optimizer unscales the gradient, not the scaler."""
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), torch.amp.GradScaler("cpu")

    def step() -> None:
        optimizer.zero_grad()
        scaler.scale(mean_loss(model, batch)).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def with_another_module(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """A learned scale of the loss with an optimizer of its own; the model's gradient depends on it."""
    scale = nn.Parameter(torch.ones(()))
    optimizers = [torch.optim.Adam(model.parameters()), torch.optim.SGD([scale], lr=0.5)]

    def step() -> None:
        (mean_loss(model, batch) * scale).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def with_master_weights(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """The optimizer has copies of the parameters, and the model's gradients are cleared at the end."""
    masters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)

    def step() -> None:
        mean_loss(model, batch).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad
        optimizer.step()
        model.zero_grad()

    return step


STEPS = [with_closure, with_fused_scaler, with_another_module, with_master_weights]


@pytest.mark.parametrize("made", STEPS)
def test_a_right_step_is_clean_whatever_its_optimizer_is_like(made: Callable[[nn.Module, Batch], Callable[[], object]]) -> None:
    model, batch = classifier(), batch_of(12)
    found = audit(model, summed_loss, batch, made(model, batch))
    assert (found.verdict, found.clean) == ("rounding", True), found


def test_what_an_optimizer_holds_is_left_as_it_was() -> None:
    """State of another dtype than the parameters', which `load_state_dict` would cast; running statistics of BatchNorm."""
    model, batch = classifier(normalized=True), batch_of(12)
    optimizer = torch.optim.Adam(model.parameters())
    mean_loss(model, batch).backward()
    optimizer.step()
    for parameter, own in optimizer.state.items():
        own["master"] = parameter.detach().double()
    held = [value for own in optimizer.state.values() for value in own.values()]
    before, tensors = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())

    def step() -> None:
        mean_loss(model, batch).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5

    def fails() -> None:
        step()
        raise RuntimeError("planted")

    for audited in (step, fails):
        with nullcontext() if audited is step else pytest.raises(RuntimeError, match="planted"):
            audit(model, each_loss, batch, audited)
        assert str(optimizer.state_dict()) == str(before)
        now = [value for own in optimizer.state.values() for value in own.values()]
        assert all(one is other for one, other in zip(now, held, strict=True))
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_a_compiled_step_stays_compiled_and_is_audited_as_it_is(factor: float) -> None:
    model, batch, runs = nn.Linear(8, 3), batch_of(12), count()

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*arguments: Tensor) -> list[Tensor]:
            next(runs)
            return [factor * out for out in graph(*arguments)]

        return run

    compiled = torch.compile(model, backend=backend)
    found = audit(model, summed_loss, batch, lambda: mean_loss(compiled, batch).backward())
    assert found.clean == (factor == 1)
    mean_loss(compiled, batch).backward()
    assert next(runs) == 4, "three calls of the audit, of which the first is not compiled, and one afterwards"


def test_bfloat16_beside_the_gradient_does_not_blunt_the_audit() -> None:
    model, batch = classifier(), batch_of(12)

    def step() -> None:
        (1.004 * mean_loss(model, batch)).backward()
        (batch[0].bfloat16() @ batch[0].bfloat16().T).mean()

    found = audit(model, summed_loss, batch, step)
    assert (found.verdict, found.factor) == ("scale", pytest.approx(1.004, abs=1e-5))


def test_one_parameter_that_is_wrong_is_named_although_the_whole_is_within_its_floor() -> None:
    model, batch = classifier(), batch_of(12)

    def step(factor: float) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses, counted = each_loss(model, batch)
        (losses.sum() / counted).backward()
        assert model[2].bias.grad is not None
        model[2].bias.grad *= factor

    for factor in (0.0, 0.9, 0.97):
        found = audit(model, summed_loss, batch, partial(step, factor))
        assert not found.clean, found
    assert (found.cause, found.statement.split()[0]) == ("parameter", "2.bias"), found


def test_a_parameter_whose_gradient_rounding_hides_is_named() -> None:
    model, batch = nn.ModuleDict({"net": classifier(), "shift": nn.Linear(1, 8, bias=False)}), batch_of(12)
    model["shift"].weight.data.zero_()

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, float]:
        shifted = batch[0] + 0.02 * model["shift"](torch.ones(1, 1, dtype=batch[0].dtype))  # type: ignore[index]
        return each_loss(model["net"], (shifted, batch[1]))  # type: ignore[index]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses, counted = loss(model, batch)
        (losses.sum() / counted).backward()

    found = audit(model, loss, batch, step)
    assert found.clean == ("would have been seen; a missing gradient of shift.weight would not" in found.statement), found


def test_a_step_that_updates_the_parameters_by_hand_is_told_apart() -> None:
    model, batch = classifier(), batch_of(12)

    def step() -> None:
        (each_loss(model, batch)[0].sum() / 6).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad

    found = audit(model, summed_loss, batch, step)
    assert (found.verdict, found.factor) == ("scale", pytest.approx(2))
    assert "updates the parameters" in found.statement


SCRIPT_SAYS = {"wrong": "weighting (likely): mean of means", "right": "rounding (likely)"}


@pytest.mark.parametrize("which", ["wrong", pytest.param("right", marks=pytest.mark.full)])
def test_the_documented_script_finds_the_mean_of_means_and_passes_what_is_right(which: str) -> None:
    done = torchrun(2, str(SCRIPT), which)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(SCRIPT_SAYS[which])
