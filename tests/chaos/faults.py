"""The faults: how each strikes, in which phases, what must be said of it, and what must be mended before the run goes on."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.run import DRIFT, TRACE, Chaotic
from tests.hosts import MISSING as NO_HOSTS
from tests.hosts import two_hosts
from tests.needs import no_mounts
from tests.running import processes_of

MODEL_PHASES = ("pre-flight", "forward", "backward", "aggregate", "drift", "compare")
"""In which the victim runs the planted model, or the planted aggregation."""
OTHER_PHASES = ("import", "join", "assemble", "ask")
OF_THE_DISK = ("disk full", "read-only mount")
FAILING = ("exception", "out of memory")
"""They fail one case, or one probe, and the run goes on to its end; before the first case there is none to fail."""
_WRITING = ("compare", "drift", "pre-flight")
"""In which rank 0 writes rows, gradients that wait, or references."""
RANK, SIGNAL, TORCHRUN, NOBODY = "rank", "signal", "torchrun", "nobody"
"""Whom the run's last words must name."""


@dataclass(frozen=True)
class Fault:
    """One kind of harm, in one phase."""

    kind: str
    phase: str
    strike: Callable[[Chaotic], None]
    status: int = 1
    names: str = RANK
    around: Callable[[Chaotic], "object"] | None = None
    """A context in which the run starts: a small disk, two hosts. It yields what mends the harm."""
    missing: str = ""
    """Why it cannot be tried here."""
    victim: int = 1
    """The rank that is struck."""

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on to its end."""
        return self.kind in FAILING and self.phase != "assemble"

    @property
    def felt_in(self) -> tuple[str, ...]:
        """Phases in which a rank may notice: a disk is missed when it is needed next."""
        return tuple({self.phase, *_WRITING}) if self.kind in OF_THE_DISK else (self.phase,)

    @property
    def overrides(self) -> tuple[str, ...]:
        """What the run needs to have such a phase."""
        return {"drift": DRIFT, "trace": TRACE}.get(self.phase, ())

    @property
    def hasty(self) -> bool:
        """True if the victim never joins the others; then the rendezvous needs a short timeout."""
        return self.phase in ("import", "join")

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.kind} in {self.phase}{'' if self.victim else ' of rank 0'}"


def _planted(deed: str, phase: str) -> Callable[[Chaotic], None]:
    once = phase in (
        "assemble",
        "pre-flight",
        "compare",
    )  # there the model runs for the first case that needs the figure, and for no other
    return lambda run: run.plant(deed, phase, done=0 if once else 1)


def _signalled(number: signal.Signals, phase: str) -> Callable[[Chaotic], None]:
    def strike(run: Chaotic) -> None:
        pid = run.reach(phase).pid
        run.strike(lambda: os.kill(pid, number))

    return strike


def _to_the_launcher(number: signal.Signals, phase: str, *, group: bool = False) -> Callable[[Chaotic], None]:
    def strike(run: Chaotic) -> None:
        run.strike_in(phase, lambda: (os.killpg if group else os.kill)(run.process.pid, number))

    return strike


def _to_torchrun(phase: str) -> Callable[[Chaotic], None]:
    def strike(run: Chaotic) -> None:
        run.strike_in(phase, lambda: os.kill(torchrun(run), signal.SIGKILL))

    def torchrun(run: Chaotic) -> int:
        return next(pid for pid, line in processes_of(run.results).items() if " launch.agent " in line)

    return strike


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@contextmanager
def small_disk(run: Chaotic) -> Iterator[Callable[[], None]]:
    """The results lie on a tmpfs of a few megabytes, which grows when the harm is mended."""
    run.results.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", "size=3m", "reducebench-chaos", str(run.results))
    try:
        yield lambda: _grow(run)
    finally:
        subprocess.run(["umount", "-l", str(run.results)], check=False)


def _grow(run: Chaotic) -> None:
    (run.results / "ballast").unlink()
    _mount("-o", "remount,size=100m", str(run.results))


def _fill(phase: str) -> Callable[[Chaotic], None]:
    """Take the last block of the disk away while a rank is in a phase."""

    def fill(run: Chaotic) -> None:
        with (run.results / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def strike(run: Chaotic) -> None:
        run.strike_in(phase, lambda: fill(run), let_go=True)

    return strike


@contextmanager
def read_only_later(run: Chaotic) -> Iterator[Callable[[], None]]:
    """What is mounted over the run directory is taken off again when the harm is mended, and at the end."""

    def lift() -> None:
        for path in (*run.results.glob("chaos/2*"), _aside(run)):
            subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)

    try:
        yield lift
    finally:
        lift()


def _aside(run: Chaotic) -> Path:
    return run.folder / "read-only"


def _read_only(phase: str) -> Callable[[Chaotic], None]:
    def mount(run: Chaotic) -> None:
        """Made read-only aside, then laid over: a mount through which a rank is writing cannot be made so (EBUSY)."""
        _aside(run).mkdir()
        _mount("--bind", str(run.run_dir.path), str(_aside(run)))
        _mount("-o", "remount,ro,bind", str(_aside(run)))
        _mount("--bind", str(_aside(run)), str(run.run_dir.path))

    def strike(run: Chaotic) -> None:
        run.strike_in(phase, lambda: mount(run), let_go=True)

    return strike


@contextmanager
def on_two_hosts(run: Chaotic) -> Iterator[Callable[[], None]]:
    """Each rank on a host of its own; the cable is mended for the run that goes on."""
    run.folder.mkdir(parents=True)
    with two_hosts(run.folder, f"c{os.getpid()}{run.folder.name}") as hosts:
        run.overrides = (*run.overrides, *hosts.overrides())
        run.cut = lambda: hosts.link("down")
        yield lambda: hosts.link("up")


def _cut(phase: str) -> Callable[[Chaotic], None]:
    def strike(run: Chaotic) -> None:
        run.strike_in(phase, run.cut, let_go=True)

    return strike


_DEEDS = {"SIGKILL": "kill", "SIGSTOP": "stop", "exception": "raise", "exit(0)": "exit", "out of memory": "memory"}
NO_MOUNT = no_mounts()
FAULTS = [
    *(Fault("SIGKILL", phase, _planted("kill", phase)) for phase in MODEL_PHASES),
    *(Fault("SIGKILL", phase, _signalled(signal.SIGKILL, phase)) for phase in OTHER_PHASES),
    *(Fault("SIGSTOP", phase, _planted("stop", phase)) for phase in MODEL_PHASES),
    *(Fault("SIGSTOP", phase, _signalled(signal.SIGSTOP, phase)) for phase in OTHER_PHASES),
    *(Fault("exception", phase, _planted("raise", phase)) for phase in (*MODEL_PHASES, "ask")),
    *(Fault("exit(0)", phase, _planted("exit", phase)) for phase in (*MODEL_PHASES, "assemble", "ask")),
    *(Fault("out of memory", phase, _planted("memory", phase)) for phase in (*MODEL_PHASES, "ask")),
    Fault("exception", "assemble", _planted("raise", "assemble"), status=2),
    Fault("out of memory", "assemble", _planted("memory", "assemble"), status=2),
    *(Fault(kind, "compare", _planted(deed, "compare"), victim=0) for kind, deed in _DEEDS.items()),
    Fault("SIGKILL", "trace", _planted("kill", "trace")),
    Fault("exception", "trace", _planted("raise", "trace"), status=0, names=NOBODY),
    *(Fault("link down", p, _cut(p), around=on_two_hosts, missing=NO_HOSTS) for p in ("aggregate", "compare", "drift")),
    *(Fault("disk full", p, _fill(p), around=small_disk, missing=NO_MOUNT) for p in ("aggregate", "compare")),
    *(Fault("read-only mount", p, _read_only(p), around=read_only_later, missing=NO_MOUNT) for p in ("aggregate", "compare")),
    *(Fault("Ctrl-C", p, _to_the_launcher(signal.SIGINT, p, group=True), names=SIGNAL) for p in ("aggregate", "compare")),
    *(Fault("SIGTERM to the launcher", p, _to_the_launcher(signal.SIGTERM, p), names=SIGNAL) for p in ("compare", "ask")),
    *(
        Fault("SIGKILL of the launcher", p, _to_the_launcher(signal.SIGKILL, p), status=-9, names=NOBODY)
        for p in ("forward", "compare")
    ),
    *(Fault("SIGKILL of torchrun", p, _to_torchrun(p), names=TORCHRUN) for p in ("aggregate", "compare")),
]
"""By kind; the victim is rank 1, and rank 0, which compares and writes, once for each of what a rank can do to itself."""


def culprit(fault: Fault) -> str:
    """How its line begins. A cable has two ends, and the first is named first."""
    return "rank 0" if fault.around else f"rank {fault.victim}"
