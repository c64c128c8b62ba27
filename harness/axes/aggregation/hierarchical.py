"""Inside a node first, then across."""

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric
from harness.axes.aggregation.buffers import by_dtype, flatten, unflatten
from harness.schema.context import Context
from harness.schema.parameters import Count
from harness.tensors import collectives


class HierarchicalAggregation(Aggregation):
    """One buffer: reduce-scatter inside a node, all-reduce of each share across nodes, all-gather inside the node.

    ranks_per_node: how many neighbouring ranks count as one node; None: as many as torchrun started on a host.
    """

    def __init__(self, ranks_per_node: Count | None = None) -> None:
        self._ranks_per_node = ranks_per_node

    def unsupported(self, context: Context) -> str | None:
        size = self._ranks_per_node or context.ranks_per_node
        if not size:
            return "the nodes have unequal numbers of ranks; ranks_per_node says how many count as one"
        if context.world_size % size:
            return f"nodes of {size} ranks do not make a world of {context.world_size}"
        return super().unsupported(context)

    def begin(self, model: nn.Module, fabric: Fabric) -> "HierarchicalExchange":
        return HierarchicalExchange(model, *fabric.subgroups(self._ranks_per_node or fabric.ranks_per_node))

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The buffer, and this rank's share of it."""
        return 2 * sum(gradient.nbytes for gradient in gradients)


class HierarchicalExchange(Exchange):
    """`inside` are the ranks of this rank's node, `across` the ranks with its place in the other nodes."""

    def __init__(self, model: nn.Module, inside: ProcessGroup, across: ProcessGroup) -> None:
        super().__init__(model)
        self._inside, self._across = inside, across

    def finish(self, gradients: list[Tensor]) -> None:
        for alike in by_dtype(gradients):
            buffer = flatten(alike, multiple=self._inside.size())
            share = buffer.new_empty(buffer.numel() // self._inside.size())
            collectives.reduce_scatter_single(share, buffer, group=self._inside)
            collectives.all_reduce(share, group=self._across)
            collectives.all_gather_single(buffer, share, group=self._inside)
            unflatten(buffer, alike)
