"""All ranks together."""

from torch import nn
from torch.distributed import ProcessGroup

from harness.axes.batchnorm.base import Batchnorm
from harness.schema.context import Context


class SyncedBatchnorm(Batchnorm):
    """torch.nn.SyncBatchNorm: statistics over the samples of all ranks, by collectives in forward and in backward."""

    synced = True

    def unsupported(self, context: Context) -> str | None:
        if "BatchNorm" not in context.coupling:
            return "the model has no BatchNorm in train mode"
        if context.device != "cuda":
            return "SyncBatchNorm has kernels for CUDA alone; this case runs on the CPU"
        if not context.spans_ranks:
            return "this aggregation is each rank's own world, and SyncBatchNorm spans them"
        if 0 in context.denominators or len(set(context.passes)) > 1:
            return "SyncBatchNorm communicates in every pass, and here some rank makes fewer than another"
        return None

    def prepare(self, model: nn.Module, group: ProcessGroup) -> nn.Module:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        return converted
