"""The groups that are measured. A rank that fails leaves them at once, so that no other rank waits in them for it.

gloo: aborting or destroying a group frees no rank while anything still refers to it: a traceback's frames, the reducer of
DistributedDataParallel, the handle of a collective in flight. The group's connections are therefore shut down below gloo; then
whoever waits for this rank gets `Connection closed by peer` at once, and so does what this rank itself has in flight.

NCCL: kernels on the device wait, and only an abort of the communicator ends them. torch raises nothing on the rank whose kernel
ended so: what the kernel would have written is garbage, and the agreement of the ranks fails the case (rank/agreement.py).
"""

import contextlib
import datetime
import os
import socket
import stat
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

NCCL_GRACE_S = 10.0
"""Beyond the deadline, until NCCL's watchdog notes a timeout: the guard, which names names, comes first."""
ABORT_S = 20.0
"""For NCCL to abort. On an H200 it took 0.5 s."""
ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
_RETHROW = "TORCH_NCCL_RETHROW_CUDA_ERRORS"
_NOTE_ONLY = {ERROR_HANDLING: "0", _RETHROW: "0", "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "1000"}
"""torch's watchdog notes an error of NCCL or CUDA and ends no process; the guard reads the error instead (rank/rescue.py).
It would otherwise do so a minute after the peer at the other end of a network connection has aborted, in the midst of a later
case; and at once after a device-side assert, before the case has its row. After an error it sleeps four times the last of these
values, and meanwhile keeps collectives from being started."""
_OF_TORCHRUN = {ERROR_HANDLING: "1"}
"""Values that torchrun gives its workers where the user has set none."""
_KEPT_S = 120.0
"""For the watchdog of an aborted group to end."""

_SUCCESS = "SUCCESS"

Sockets = dict[int, int]
"""Descriptor to inode: a descriptor may mean another file later, an inode may not while it is open."""


@dataclass
class MeasuredGroups:
    """Measured groups of one rank. All ranks make, and destroy, them alike.

    `leave` may be called from another thread, even while the main thread is making a group: it then leaves that one, too, as
    soon as it is made.
    """

    backend: str
    device: torch.device
    stuck: bool = False
    """True once NCCL has not aborted in ABORT_S: only another process can use the device then."""
    _made: dict[ProcessGroup, Sockets] = field(default_factory=dict)
    _aborted: list[tuple[float, ProcessGroup]] = field(default_factory=list)
    """(time, group). They are kept for a while: the destructor of such a group waits for its watchdog, which may sleep."""
    _left: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def make(self, deadline_s: float, ranks: list[int] | None = None) -> ProcessGroup:
        """Make a group of these ranks, or of all; a mere mark on the others."""
        before = open_sockets()
        with _errors_only_noted(self.backend):
            group = _new_group(self.backend, deadline_s, self.device, ranks)
        if isinstance(group, ProcessGroup):
            opened = open_sockets()
            with self._lock:
                self._made[group] = {fd: inode for fd, inode in opened.items() if before.get(fd) != inode}
                if self._left:
                    self._leave()
        return group

    def leave(self) -> None:
        """Have no other rank wait for this one in these groups, nor this one for another. Raises nothing."""
        with self._lock:
            self._left = True
            self._leave()

    def _leave(self) -> None:
        if self.backend == "nccl":
            self._abort()
        else:
            for sockets in self._made.values():
                shut_down(sockets)

    def destroy(self) -> None:
        """Forget the groups, after all ranks have left them; those that are made from now on are used."""
        self.leave()
        with self._lock:
            for group in self._made:
                dist.destroy_process_group(group)
            self._made.clear()
            self._aborted = [(at, group) for at, group in self._aborted if time.monotonic() - at < _KEPT_S]
            self._left = False

    def error(self) -> str:
        """Return the error that NCCL has noted, or nothing."""
        if self.backend != "nccl" or self._left:
            return ""
        return next(filter(None, map(_nccl_error, list(self._made))), "")

    def _abort(self) -> None:
        """In threads: an abort may wait for that of another group on another rank, and may never end."""
        groups = list(self._made)
        self._made.clear()
        self._aborted += [(time.monotonic(), group) for group in groups]
        if not answers(self.device):
            return  # no kernel of this process runs any more, and every call of CUDA raises
        threads = [threading.Thread(target=_abort, args=(group,), name="abort", daemon=True) for group in groups]
        until = time.monotonic() + ABORT_S
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0.0))
        self.stuck = self.stuck or any(thread.is_alive() for thread in threads)


def answers(device: torch.device) -> bool:
    """Return False where CUDA answers every call with an earlier error. Does not wait for the device."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.current_stream(device).query()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True


def open_sockets() -> Sockets:
    """Sockets of this process."""
    found = Sockets()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            status = path.stat()
            if stat.S_ISSOCK(status.st_mode):
                found[int(path.name)] = status.st_ino
    return found


def shut_down(sockets: Sockets) -> None:
    """Shut down those that are connections and still open. gloo ends the process if its listening socket is shut down."""
    for descriptor, inode in sockets.items():
        with contextlib.suppress(OSError):
            copy = os.dup(descriptor)  # gloo's thread may close its own at any moment, and another file take its number
            try:
                if os.fstat(copy).st_ino == inode:
                    _shut_down(copy)
            finally:
                os.close(copy)


def _shut_down(descriptor: int) -> None:
    own = socket.socket(fileno=descriptor)
    try:
        if not own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            own.shutdown(socket.SHUT_RDWR)
    finally:
        own.detach()


@contextlib.contextmanager
def _errors_only_noted(backend: str) -> Iterator[None]:
    """Set the variables that a group reads when it is made, where the user has set no other value."""
    before = {name: os.environ.get(name) for name in _NOTE_ONLY} if backend == "nccl" else {}
    ours = {name: value for name, value in before.items() if value in (None, _OF_TORCHRUN.get(name))}
    os.environ.update({name: _NOTE_ONLY[name] for name in ours})
    try:
        yield
    finally:
        for name, value in ours.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _new_group(backend: str, deadline_s: float, device: torch.device, ranks: list[int] | None) -> ProcessGroup:
    device_id = device if backend == "nccl" else None
    grace = NCCL_GRACE_S if backend == "nccl" else 0.0
    timeout = datetime.timedelta(seconds=deadline_s + grace)
    group: ProcessGroup = dist.new_group(ranks, backend=backend, timeout=timeout, device_id=device_id)
    return group


def _abort(group: ProcessGroup) -> None:
    """Once a group: NCCL's communicators are not to be aborted twice."""
    try:
        dist.distributed_c10d._abort_process_group(group)
    except Exception:  # in a thread of its own, where no other code prints it
        traceback.print_exc()


def _nccl_error(group: ProcessGroup) -> str:
    """`TIMEOUT`, `COMM_ERROR` or `REMOTE_ERROR`."""
    get_error = getattr(group._get_backend(torch.device("cuda")), "get_error", None)  # a wrapper that debugs has none
    name = get_error().name if get_error else _SUCCESS
    return "" if name == _SUCCESS else str(name)
