"""The reasons for which a case may be skipped where there is no CUDA device. A new one is a decision, not an accident."""

import re
from collections.abc import Iterable

_REASONS = (
    "torch.func computes gradients without the backward in which this aggregation communicates",
    "DistributedDataParallel registers bf16_compress_hook for NCCL alone, and this case's group is gloo",
    r"this aggregation takes one backward an iteration, and here a rank makes \d+",
    "fully_shard takes contiguous parameters alone; not contiguous: weight",
    "this aggregation needs gradients of the same parameters on every rank; the ranks' batches differ in that",
    "this aggregation is promised that every pass uses the same parameters, and here passes differ in that",
    "what is left in .grad is unscaled, and the gradient that is added to it is scaled",
    r"nodes of \d+ ranks do not make a world of \d+",
    "this aggregation sends nothing",
    "this aggregation sends during backward: a dtype for that is a matter of its own parameters and variants",
    "one rank alone cannot be without samples",
    "every sample counts the same: there is nothing to sort by",
    "TF32 is a format of CUDA's tensor cores; this case runs on the CPU",
    "the model has no BatchNorm in train mode",
    "SyncBatchNorm has kernels for CUDA alone; this case runs on the CPU",
    "torch.func's vmap cannot call a compiled module",
    "vmap takes samples one by one, and BatchNorm in train mode needs the batch and updates its buffers in place",
    "vmap draws no random numbers unless it is told how samples share them: dropout's masks",
    "the host waits for a CUDA device; this case runs on the CPU",
    "torch.cuda.synchronize waits for a CUDA device; on the CPU each collective has ended when it returns",
    "this aggregation decides by itself when it waits for its collectives",
    r"no target of rank \d+'s shard counts in the loss: the rank's own mean is 0/0",
    "sparse gradients cannot be aggregated: .*; try sparse=False",
    "the model has no parameter that gets a gradient: there is nothing to aggregate",
)


def unknown(reasons: Iterable[str]) -> list[str]:
    """Those that are not in the list."""
    return sorted({reason for reason in reasons if not any(re.fullmatch(known, reason) for known in _REASONS)})
