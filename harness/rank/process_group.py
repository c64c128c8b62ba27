"""The world of a rank: its device, the process group that is measured, the control group, and the default group beside them.

The default group is the user's own: a model or a loss may use it, and reducebench does not.
"""

import datetime
import os
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, Store

from harness.probes.control import Control
from harness.rank.gathering import gather
from harness.rank.guard import CONTROL_GRACE_S
from harness.rank.lifeline import Lifeline
from harness.rank.measured_groups import MeasuredGroups, Sockets, open_sockets, shut_down
from harness.schema.config import RENDEZVOUS_S, BenchmarkConfig
from harness.schema.refusal import RefusedError

HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that name the GPUs a process may see, of CUDA and of two layers of ROCm; empty: none."""
SETTLE_S = 30.0
"""For a device to do what it has been given, after a failure."""


class BrokenGroupError(Exception):
    """A failure has left the user's default group, or a CUDA device, so that nothing runs on it; another world can."""


Check = Callable[[Control, torch.device, str], None]
"""Told the control group, this rank's device and the backend, before the group that is measured is made; may refuse."""


def open_store(rendezvous_s: float = RENDEZVOUS_S) -> tuple[Store, int, int]:
    """The store that all ranks share, this rank, and the world size, from the environment that torchrun sets."""
    store, rank, size = next(dist.rendezvous("env://", timeout=_seconds(rendezvous_s)))
    return store, rank, size


def _unchecked(control: Control, device: torch.device, backend: str) -> None:
    """For worlds of tests and benches, which are made for the purpose."""


@dataclass
class World:
    """One rank among the others. `measured` is benchmarked; everything that is no measurement goes over `control`."""

    rank: int
    size: int
    device: torch.device
    backend: str
    measured: ProcessGroup
    groups: MeasuredGroups
    """`measured`, and those that are parts of it."""
    control: Control
    deadline_s: float
    lifeline: Lifeline
    ranks_per_node: int = 1
    """As torchrun started them."""
    _subgroups: dict[int, tuple[ProcessGroup, ProcessGroup]] = field(default_factory=dict)
    _suspect: bool = False
    """True from a failure until `check_default`."""
    _lost_device: bool = False
    """True where a rank's CUDA device fails every call, as after a device-side assert: only another process can use it."""
    _default: Sockets = field(default_factory=Sockets)
    """Connections of torch's default group."""

    def __post_init__(self) -> None:
        """A rank that fails leaves the groups of the world that was made last, as by `replace`."""
        if self.size > 1:
            self.control.attempts.leave_groups = self.groups.leave

    @classmethod
    def open(
        cls,
        config: BenchmarkConfig,
        store: Store,
        rank: int,
        size: int,
        check: Check = _unchecked,
        met: Callable[[Lifeline], None] = lambda lifeline: None,
    ) -> "World":
        """Join the process groups; `check` is called before the one that is measured, `met` before all.

        Raises RefusedError when the device or the backend is not there, UnreachableError when another rank is not.
        """
        device = choose_device(config, int(os.environ["LOCAL_RANK"]))
        backend = choose_backend(config, device)
        lifeline = gather(store, rank, size, config.rendezvous_s)
        met(lifeline)
        default = _join_default(dist.PrefixStore("default", store), rank, size, config.deadline_s)
        control = Control(_control_group(config.deadline_s), rank, size)
        check(control, device, backend)
        groups = MeasuredGroups(backend, device)
        measured = groups.make(config.deadline_s)
        return cls(
            rank=rank,
            size=size,
            device=device,
            backend=backend,
            measured=measured,
            groups=groups,
            control=control,
            deadline_s=config.deadline_s,
            lifeline=lifeline,
            ranks_per_node=ranks_per_node(control),
            _default=default,
        )

    def alone(self) -> "World":
        """This rank as its own world: there is nobody to wait for, and nothing may be sent."""
        return replace(self, rank=0, size=1, control=Control(None, 0, 1))

    def rebuild_measured(self) -> None:
        """Replace the measured groups, which a failure may have broken on some ranks only; all ranks call alike.

        They are left before the device is asked: a kernel of NCCL that waits for a rank that has failed would never end.
        """
        self._suspect = True
        self.groups.leave()
        self._lost_device = self.control.any(self.groups.stuck or not _works(self.device))
        if self._lost_device:
            return  # a new group would raise before the case that failed has its row
        self.groups.destroy()
        self._subgroups.clear()
        _name_alike(self.control)
        self.measured = self.groups.make(self.deadline_s)

    def leave_default(self) -> None:
        """Have no rank wait in torch's default group any more. It cannot be used afterwards: see `check_default`."""
        shut_down(self._default)

    def check_default(self) -> None:
        """Check the world after a failure, on all ranks. Raises BrokenGroupError on all if the group or a device is lost."""
        if self._lost_device:
            raise BrokenGroupError("after this failure every call of CUDA fails, or waits for ever, in the process of a rank")
        suspect, self._suspect = self._suspect, False
        if not suspect or self.size == 1:
            return
        try:
            dist.barrier()
            broken = False
        except RuntimeError:  # closed by this rank or by another
            traceback.print_exc()
            broken = True
        if self.control.any(broken):
            raise BrokenGroupError("after this failure torch's default process group cannot be used any more")

    def subgroups(self, size: int) -> tuple[ProcessGroup, ProcessGroup]:
        """The run of `size` neighbouring ranks that this rank is in, and those that have its place in their runs.

        Made once, for every rank takes part in making every group. Raises ValueError where the world is no multiple of it.
        """
        if self.size % size:
            raise ValueError(f"runs of {size} ranks do not make a world of {self.size}")
        if size not in self._subgroups:
            inside = [range(start, start + size) for start in range(0, self.size, size)]
            across = [range(place, self.size, size) for place in range(size)]
            self._subgroups[size] = self._mine(inside), self._mine(across)
        return self._subgroups[size]

    def _mine(self, cut: list[range]) -> ProcessGroup:
        groups = [self.groups.make(self.deadline_s, list(ranks)) for ranks in cut]
        return next(group for group, ranks in zip(groups, cut, strict=True) if self.rank in ranks)

    def close(self) -> None:
        """Leave the groups together, so that no rank tears down what another one still reads."""
        self.control.meet()
        dist.destroy_process_group()


def ranks_per_node(control: Control) -> int:
    """As torchrun has started them. Raises RefusedError, on all ranks, where nodes differ in it."""
    own = int(os.environ.get("LOCAL_WORLD_SIZE", control.size))
    started = [int(number) for number in control.all_gather(torch.tensor(own))]
    if len(set(started)) > 1:
        counts = sorted(number for number in set(started) for _ in range(started.count(number) // number))
        raise RefusedError(f"the nodes have {', '.join(map(str, counts))} ranks: expected as many on each node")
    return own


def _works(device: torch.device, within_s: float = SETTLE_S) -> bool:
    """Return False where CUDA answers every call with an earlier error, or does not end what it was given.

    An error of a kernel that was still to run when the case failed shows once the device has come to it. Running out of memory
    is no such error: the device works on.
    """
    if device.type != "cuda":
        return True
    settled = list[bool]()

    def settle() -> None:
        try:
            torch.cuda.synchronize(device)
            settled.append(True)
        except RuntimeError:  # AcceleratorError is one
            traceback.print_exc()

    waiting = threading.Thread(target=settle, name="settle", daemon=True)  # a collective of the user's own may never end
    waiting.start()
    waiting.join(within_s)
    return bool(settled)


def _name_alike(control: Control) -> None:
    """Give the next group one name on all ranks. torch counts groups, and a rank that failed may have made more or fewer."""
    counts = control.all_gather(torch.tensor(dist.distributed_c10d._world.group_count))
    dist.distributed_c10d._world.group_count = max(int(count) for count in counts)


def choose_device(config: BenchmarkConfig, local_rank: int) -> torch.device:
    """The device of this rank on its node: by LOCAL_RANK, never by the global rank. A run on the CPU hides its host's GPUs."""
    if config.device == "cpu":
        os.environ.update(dict.fromkeys(HIDING, ""))  # torch's PowerSGD hook waits for a GPU if one is seen
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RefusedError("device=cuda: torch sees no CUDA device on this node")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())  # gloo lets ranks share a GPU
    torch.cuda.set_device(device)
    return device


def choose_backend(config: BenchmarkConfig, device: torch.device) -> str:
    """The process group backend that is measured."""
    backend = config.backend if config.backend != "auto" else ("nccl" if device.type == "cuda" else "gloo")
    if backend == "nccl" and device.type != "cuda":
        raise RefusedError("backend=nccl: it reduces CUDA tensors only, and this run is on the CPU; use backend=gloo")
    return backend


def _join_default(store: Store, rank: int, size: int, deadline_s: float) -> Sockets:
    """Make torch's default group, and return its connections."""
    before = open_sockets()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_seconds(deadline_s))
    return {descriptor: inode for descriptor, inode in open_sockets().items() if before.get(descriptor) != inode}


def _control_group(deadline_s: float) -> ProcessGroup:
    """No group that the user's code can reach: a collective of its own would be taken for one of the harness."""
    group: ProcessGroup = dist.new_group(backend="gloo", timeout=_seconds(deadline_s + CONTROL_GRACE_S))
    return group


def _seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=value)
