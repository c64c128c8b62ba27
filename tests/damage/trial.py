"""One trial: a mutated copy of a run, one command on it, and what may not have happened."""

import io
import os
import random
import shutil
import signal
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from harness.report.__main__ import main as report
from harness.report.frame import load_run
from harness.schema.refusal import RefusedError
from launch.__main__ import main as launch
from tests.damage.mutate import mutate

HANG_S = 120
"""A command that takes as long hangs, also on a busy machine; it is to answer within 10 s."""
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown")
_EXECUTES = ("subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "os.spawn", "os.fork", "pickle.find_class", "code.")
_OWN = ("/proc/self/", "/dev/null", "/dev/fd/")


@dataclass
class _Watch:
    """An audit hook cannot be removed: it is set once, and asleep between trials."""

    awake: bool = False
    written: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.awake:
            return
        if event == "open":
            path, _, flags = (*arguments, None, None)[:3]
            if isinstance(path, str | bytes | os.PathLike) and isinstance(flags, int) and flags & _WRITES:
                self.written.append(os.fsdecode(path))
        elif event in _CHANGES:
            self.written += [os.fsdecode(path) for path in arguments if isinstance(path, str | bytes | os.PathLike)]
        elif event.startswith(_EXECUTES) and "'uname'" not in str(arguments):  # platform.processor, which mlflow asks
            self.executed.append(f"{event} {arguments}"[:200])


_WATCH = _Watch()
_HOOKED = False


@contextmanager
def watched() -> Iterator[_Watch]:
    global _HOOKED
    if not _HOOKED:
        sys.addaudithook(_WATCH.hook)
        _HOOKED = True
    _WATCH.written, _WATCH.executed, _WATCH.awake = [], [], True
    try:
        yield _WATCH
    finally:
        _WATCH.awake = False


def _show(run: Path, base: Path, out: Path) -> int:
    return report(["show", str(run)])


def _show_both(run: Path, base: Path, out: Path) -> int:
    return report(["show", str(base), str(run)])


def _check(run: Path, base: Path, out: Path) -> int:
    return report(["check", str(run), "--max-relative-l2", "1", "--max-step-ms", "1e6", "--max-memory-mib", "1e9"])


def _compare(run: Path, base: Path, out: Path) -> int:
    return report(["compare", str(base), str(run), "--phases"])


def _compare_old(run: Path, base: Path, out: Path) -> int:
    return report(["compare", str(run), str(base), "--gate", "time=5%", "--gate", "relative_l2=2x"])


def _tensorboard(run: Path, base: Path, out: Path) -> int:
    return report(["export", "tensorboard", str(run), "--to", str(out)])


def _mlflow(run: Path, base: Path, out: Path) -> int:
    with patch("tempfile.tempdir", str(out)):  # files on their way to the server
        return report(["export", "mlflow", str(run), "--to", f"sqlite:///{out}/mlflow.db", "--experiment", "damaged"])


def _load(run: Path, base: Path, out: Path) -> int:
    try:
        loaded = load_run(run)
    except RefusedError as error:
        print(repr(str(error)))
        return 2
    assert len(loaded.samples) >= 0
    return int(loaded.failed)


def _resume(run: Path, base: Path, out: Path) -> int:
    return launch([f"resume={run}", "dry_run=true"])


def _resume_anyway(run: Path, base: Path, out: Path) -> int:
    return launch([f"resume={run}", "dry_run=true", "accept_changes=true"])


Command = Callable[[Path, Path, Path], int]
COMMANDS: tuple[Command, ...] = (
    *(_show, _check, _compare, _tensorboard, _load, _resume),
    *(_show, _show_both, _compare_old, _check, _load, _resume_anyway),
)
SLOW: tuple[Command, ...] = (_mlflow,)
"""Commands of which one in 25 trials is."""
_WRITES_INTO = {_load: (), _resume: (), _resume_anyway: ()}


@dataclass(frozen=True)
class Trial:
    """Outcome of one trial; `faults` is empty if nothing is wrong."""

    name: str
    faults: tuple[str, ...]


def try_clean(base: Path, folder: Path) -> list[str]:
    """Faults of the commands on a run that is whole: each has status 0, or 2 where it says why."""
    faults = []
    for number, command in enumerate((_show, _check, _compare, _tensorboard, _load, _resume)):
        run, out, cwd = (folder / str(number) / name for name in ("run", "out", "cwd"))
        shutil.copytree(base, run, symlinks=True, ignore=_derived)
        out.mkdir()
        cwd.mkdir()
        faults += _run(command, run, base, out, cwd, expected=(0,))
    return faults


def try_one(base: Path, folder: Path, seed: int, number: int) -> Trial:
    """Copy `base` to `folder`, mutate it, run a command. Repeated by the same seed and number on a like run."""
    draw = random.Random(f"{seed} {number}")
    command = SLOW[0] if number % 25 == 24 and SLOW else COMMANDS[number % len(COMMANDS)]
    run, bait, out, cwd = (folder / name for name in ("run", "bait", "out", "cwd"))
    shutil.copytree(base, run, symlinks=True, ignore=_derived)
    for made in (bait / "folder", out, cwd):
        made.mkdir(parents=True)
    (bait / "file").write_text("bait")
    (bait / "folder" / "file").write_text("bait")
    mutation = mutate(run, draw, bait)
    name = f"seed {seed}, trial {number}: {command.__name__.strip('_')}, {mutation.path}: {mutation.words}"
    before = _snapshot(folder, out)
    faults = _run(command, run, base, out, cwd)
    changed = _different(before, _snapshot(folder, out))
    allowed = _WRITES_INTO.get(command, ("run/report",))
    faults += [f"{place} has changed" for place in changed if not place.startswith(allowed or ("-",))]
    return Trial(name, tuple(faults))


def _derived(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "report"]


def _run(command: Command, run: Path, base: Path, out: Path, cwd: Path, expected: tuple[int, ...] = (0, 1, 2)) -> list[str]:
    faults: list[str] = []
    said = io.StringIO()
    came_from = Path.cwd()
    os.chdir(cwd)
    before = dict(os.environ)
    signal.signal(signal.SIGALRM, _hang)
    signal.alarm(HANG_S)
    try:
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said), watched() as watch:
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", DeprecationWarning)  # of libraries, which mlflow uses
            with patch.dict(os.environ, COLUMNS="200"):
                status = command(run, base, out)
        if status not in expected:
            faults.append(f"status {status}: {said.getvalue()[-500:]}")
        faults += _said(command, run, status, said.getvalue())
    except SystemExit as error:
        faults.append(f"SystemExit {error.code}")
    except BaseException as error:  # whatever comes out is a traceback on a terminal
        faults.append("".join(traceback.format_exception(error)))
    finally:
        signal.alarm(0)
        os.chdir(came_from)
        os.environ.clear()
        os.environ.update(before)
    allowed = (str(run / "report"), str(base / "report"), str(out), *_OWN)
    outside = [path for path in watch.written if Path(path).is_absolute() and not path.startswith(allowed)]
    faults += [f"{path} was written" for path in outside if not _of_python(path)]
    return faults + [f"{event} was executed" for event in watch.executed]


def _hang(number: int, frame: object) -> None:
    raise TimeoutError(f"no answer within {HANG_S} s")


def _said(command: Command, run: Path, status: int, text: str) -> Iterator[str]:
    """Faults of what is shown."""
    if "Traceback" in text:
        yield text
    pages = [(name, path.read_text()) for name in ("*.md", "*.csv") for path in (run / "report").glob(name) if path.is_file()]
    for where, shown in (("the terminal", text), *((name, page) for name, page in pages)):
        steering = {c for c in set(shown) if unicodedata.category(c) in _STEERING} - {"\n"}
        if steering:
            yield f"{sorted(map(ascii, steering))} on {where}"
    if command in (_resume, _resume_anyway, _load):
        return
    with suppress(RefusedError):
        damaged = load_run(run).damaged
        if damaged:
            if status == 0:
                yield f"status 0, and {damaged} is not whole"
            if status == 1 and "not whole" not in text:
                yield f"no word of {damaged}: {text[-500:]}"


def _of_python(path: str) -> bool:
    """Caches of modules and fonts."""
    return "__pycache__" in path or "/matplotlib" in path or "mlflow" in path or path.startswith("/dev/")


def _snapshot(folder: Path, out: Path) -> dict[str, tuple[int, int, int]]:
    """Every name beneath, without following links, but those in `out`."""
    found = {}
    for path in folder.rglob("*"):
        if out not in (path, *path.parents):
            status = path.lstat()
            changes = 0 if path.is_dir() and not path.is_symlink() else status.st_mtime_ns
            found[str(path.relative_to(folder))] = (status.st_mode, status.st_size if changes else 0, changes)
    return found


def _different(before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
