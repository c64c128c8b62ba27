"""Gradients that are never cleared."""

from torch import nn

from harness.axes.fault.base import Fault, Share, Situation
from harness.schema.context import Context


class MissingZeroGradFault(Fault):
    """No zero_grad between iterations: each finds the aggregated result of the one before in `.grad`, and adds to it.

    With c of the old result in the new one, iteration k holds 1 + c + ... + c^(k-1) times the gradient: k times where
    gradients are averaged over ranks, the sum of W^j, j < k, where they are summed. Modes that divide `.grad` in place divide
    the old result too; one that assigns `.grad` is not affected.
    """

    def unsupported(self, context: Context) -> str | None:
        if context.scales_loss:
            return "what is left in .grad is unscaled, and the gradient that is added to it is scaled"
        return super().unsupported(context)

    def expected(self, situation: Situation) -> list[Share]:
        factors = [sum(carry**j for j in range(situation.iteration)) for carry in situation.carries]
        return [share.scaled(factor) for share, factor in zip(situation.right, factors, strict=True)]

    def clear(self, model: nn.Module) -> None:
        return
