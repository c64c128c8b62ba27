"""Two ranks that make their groups as reducebench does: does each collective work, and which bits does it leave?

    torchrun --nproc-per-node=2 -m tests.gpu.two_ranks nccl|gloo

Ranks share a GPU where there is one only. The last check is of NCCL alone: abort() frees a rank whose peer never joins.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

CUDA = torch.cuda.is_available()
LENGTH = 5000
_TIMEOUT = timedelta(seconds=40)
_ABORT_S = 2.0


class Checks:
    """A rank, its device and its groups."""

    def __init__(self, backend: str) -> None:
        self.backend, self.rank = backend, int(os.environ["RANK"])
        self.device = torch.device("cuda", self.rank % torch.cuda.device_count()) if CUDA else torch.device("cpu")
        if CUDA:
            torch.cuda.set_device(self.device)
        self.began = time.perf_counter()
        self.failed = 0
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        self.group = self.measured()
        rows = torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(3))
        self.own, self.first, self.second = (rows[row].to(self.device, copy=True) for row in (self.rank, 0, 1))
        self.total = self.first + self.second

    def measured(self) -> ProcessGroup:
        bound = self.device if self.backend == "nccl" else None
        group: ProcessGroup = dist.new_group(None, backend=self.backend, timeout=_TIMEOUT, device_id=bound)
        return group

    def synchronize(self) -> None:
        if CUDA:
            torch.cuda.synchronize()

    def say(self, text: object) -> None:
        os.write(1, f"rank {self.rank} [{time.perf_counter() - self.began:6.2f} s]: {text}\n".encode())

    def attempt(self, name: str, check: Callable[[], Any]) -> None:
        """Print what a check returns, or what it raises. False counts as a failure."""
        dist.barrier()
        try:
            result = check()
            self.synchronize()
        except Exception as error:
            result = f"raised {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            self.failed += 1
            self.say(f"{name}: {result}")
        else:
            self.failed += result is False
            if self.rank == 0:
                self.say(f"{name}: {result}")

    def summed(self, dtype: torch.dtype, operation: Any = dist.ReduceOp.SUM) -> Tensor:
        x = self.own.to(dtype, copy=True)
        dist.all_reduce(x, op=operation, group=self.group)
        return x

    def all_reduce(self, dtype: torch.dtype) -> bool:
        return torch.equal(self.summed(dtype), self.first.to(dtype) + self.second.to(dtype))

    def average(self, dtype: torch.dtype) -> dict[str, bool]:
        """Which ways of computing the mean leave the same bits."""
        x, a, b = self.summed(dtype, dist.ReduceOp.AVG), self.first.to(dtype), self.second.to(dtype)
        ways = {
            "(a + b) / 2": (a + b) / 2,
            "a / 2 + b / 2": a / 2 + b / 2,
            "float32 (a + b) / 2": ((a.float() + b.float()) / 2).to(dtype),
        }
        return {name: torch.equal(x, way) for name, way in ways.items()}

    def reduce_scatter(self) -> bool:
        share = torch.empty(LENGTH // 2, device=self.device)
        dist.reduce_scatter_tensor(share, self.own.clone(), group=self.group)
        return torch.equal(share, self.total.chunk(2)[self.rank])

    def all_gather(self) -> bool:
        whole = torch.empty(2 * LENGTH, device=self.device)
        dist.all_gather_into_tensor(whole, self.own, group=self.group)
        return torch.equal(whole, torch.cat([self.first, self.second]))

    def reduce_and_broadcast(self) -> bool:
        x = self.own.clone()
        dist.reduce(x, group_dst=0, group=self.group)
        dist.broadcast(x, group_src=0, group=self.group)
        return torch.equal(x, self.total)

    def coalesced(self) -> bool | str:
        if self.backend == "gloo" and CUDA:
            return "not tried: gloo has no coalesced all-reduce of CUDA tensors"
        tensors = [self.own.clone(), self.own[:7].clone()]
        with dist._coalescing_manager(self.group):
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.group)
        self.synchronize()
        return torch.equal(tensors[0], self.total) and torch.equal(tensors[1], self.total[:7])

    def four_in_flight(self) -> bool:
        tensors = [self.own.clone() for _ in range(4)]
        for work in [dist.all_reduce(tensor, group=self.group, async_op=True) for tensor in tensors]:
            work.wait()
        return all(torch.equal(tensor, self.total) for tensor in tensors)

    def large(self) -> bool:
        x = torch.ones(2**24 if CUDA else 2**20, device=self.device)
        dist.all_reduce(x, group=self.group)
        return bool((x == 2).all())

    def small(self) -> str:
        x, durations = torch.zeros(256, device=self.device), []
        for _ in range(20):
            self.synchronize()
            began = time.perf_counter()
            dist.all_reduce(x, group=self.group)
            self.synchronize()
            durations.append(time.perf_counter() - began)
        return f"median {sorted(durations)[10] * 1e6:.0f} us (of no value where the ranks share a GPU)"

    def abandoned(self) -> str | dict[str, object]:
        """Rank 0 starts a sum that rank 1 never joins; abort() must free it, and a new group must work."""
        if self.backend != "nccl" or not CUDA:
            return "not tried: nccl alone"
        freed = self._freed() if self.rank == 0 else {}
        if self.rank:
            time.sleep(_ABORT_S + 1)
            self._abort()
        dist.barrier()
        x, again = torch.ones(1000, device=self.device), self.measured()
        dist.all_reduce(x, group=again)
        self.synchronize()
        return {**freed, "a new group sums": bool((x == 2).all())}

    def _freed(self) -> dict[str, object]:
        began, freed = time.perf_counter(), dict[str, object]()

        def abort() -> None:
            time.sleep(_ABORT_S)
            self._abort()
            freed["abort returned, s"] = round(time.perf_counter() - began, 2)

        thread = threading.Thread(target=abort)
        thread.start()
        try:
            dist.all_reduce(torch.ones(1000, device=self.device), group=self.group)
            self.synchronize()
        except Exception as error:
            freed["raised"] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        freed["synchronize returned, s"] = round(time.perf_counter() - began, 2)
        thread.join()
        return freed

    def _abort(self) -> None:
        dist.distributed_c10d._abort_process_group(self.group)


def main(backend: str) -> int:
    checks = Checks(backend)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        checks.attempt(f"all_reduce {dtype}", partial(checks.all_reduce, dtype))
    averaged = (torch.float32, torch.bfloat16) if CUDA else ()
    for dtype in averaged:  # AVG over gloo is for CUDA tensors, or for newer torch
        checks.attempt(f"AVG {dtype}", partial(checks.average, dtype))
    for check in (checks.reduce_scatter, checks.all_gather, checks.reduce_and_broadcast, checks.coalesced):
        checks.attempt(check.__name__, check)
    checks.attempt("four in flight", checks.four_in_flight)
    checks.attempt("64 MiB" if CUDA else "4 MiB", checks.large)
    checks.attempt("1 KiB", checks.small)
    checks.attempt("a collective that a peer never joins, aborted", checks.abandoned)
    dist.barrier()
    checks.say(f"done, {checks.failed} failed")
    return int(checks.failed > 0)


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # groups that were aborted are not destroyed
