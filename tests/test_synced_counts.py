"""torch.nn.SyncBatchNorm rounds the number of samples of a rank to the dtype of its running statistics: docs/aggregation.md."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm

ROUNDED = {256: 256, 257: 256, 1568: 1568, 1617: 1616}
"""Samples times positions of a rank, to what is left of them in bfloat16: 8 bits hold 1568 = 49 * 2^5, and not 1617."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", ROUNDED)
def test_counts_take_the_dtype_of_the_parameters(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are CUDA's; what surrounds them is the same Python on every device."""
    seen: dict[str, Tensor] = {}

    def stats(given: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return torch.zeros(2), torch.ones(2)  # CUDA returns its accumulation dtype, float32

    def gathered(given: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        seen["forward"] = arguments[-1]
        return torch.zeros(2), torch.ones(2)

    def all_gather(every: list[Tensor], own: Tensor, group: object, *, async_op: bool) -> None:
        for one in every:
            one.copy_(own)

    monkeypatch.setattr(torch, "batch_norm_stats", stats)
    monkeypatch.setattr(torch, "batch_norm_gather_stats_with_counts", gathered)
    monkeypatch.setattr(torch, "batch_norm_elemt", lambda given, *_: given)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    context = SimpleNamespace(save_for_backward=lambda *saved: seen.update(backward=saved[-1]))
    group, running = SimpleNamespace(_get_backend_name=lambda: "gloo"), torch.zeros(2, dtype=dtype)
    given = torch.zeros(count, 2, dtype=dtype)
    SyncBatchNorm.forward(context, given, None, None, running, running, 1e-5, 0.1, group, 2)
    assert seen["forward"].dtype == dtype
    assert seen["forward"].tolist() == [ROUNDED[count] if dtype == torch.bfloat16 else count] * 2
    assert seen["backward"].flatten().tolist() == [count] * 2, "backward keeps whole numbers"
