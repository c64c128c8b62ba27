"""Tap: a case run once more, untimed, and what passes through its last iteration on the way to the result."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.axes.aggregation.base import Exchange
from harness.axes.reduction.base import Phases
from harness.rank.rig import Rig, gradient_of

Save = Callable[[str, Iterable[Tensor]], None]
"""Told a name and a gradient, tensor after tensor."""
_BETWEEN = ("sync", "aggregate", "unscale", "clip")
"""Phases after the local gradient."""
LOCAL, HANDED, SUMMED, UNCLIPPED, RESULT = "local", "handed", "summed", "unclipped", "result"


@dataclass
class Tap:
    """Around the last iteration of a rig. Each gradient is handed to `save`, and not held."""

    rig: Rig
    save: Save
    seen: set[str] = field(default_factory=set)
    """Which have been saved: HANDED and SUMMED only where the strategy's own sum was called, after backward."""
    handed: list[Tensor] = field(default_factory=list)
    """Like what was handed over: shapes, dtypes and strides, on the meta device."""

    def around(self, phases: Phases) -> Phases:
        """The phases, with looks between them."""
        names = [name for name, _ in phases]
        local = next((place for place, name in enumerate(names) if name in _BETWEEN), len(names))
        clip = names.index("clip") if "clip" in names else len(names)
        self._around_finish(self.rig.exchange)
        looks = [("", lambda: self._see(LOCAL, self._gradients()))], [("", lambda: self._see(UNCLIPPED, self._gradients()))]
        return [*phases[:local], *looks[0], *phases[local:clip], *looks[1], *phases[clip:]]

    def ended(self) -> None:
        """The result, in one piece on every rank."""
        self._see(RESULT, (tensor for _, tensor in self.rig.gradient()))
        del self.rig.exchange.finish  # the strategy's own again
        self.rig.model.zero_grad(set_to_none=True)  # what is kept lies in files

    def _around_finish(self, exchange: Exchange) -> None:
        finish = exchange.finish

        def tapped(gradients: list[Tensor]) -> None:
            whole = self._whole(gradients)
            self.handed = [torch.empty_like(gradient, device="meta") for gradient in whole]
            self._see(HANDED, whole)
            finish(gradients)
            self._see(SUMMED, self._whole(gradients))

        exchange.finish = tapped  # type: ignore[method-assign]

    def _gradients(self) -> list[Tensor]:
        return self._whole([gradient_of(parameter) for parameter in self.rig.trained().values()])

    def _whole(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        return [self.rig.exchange.whole(gradient) for gradient in gradients]

    def _see(self, name: str, gradients: Iterable[Tensor]) -> None:
        self.save(name, gradients)
        self.seen.add(name)
