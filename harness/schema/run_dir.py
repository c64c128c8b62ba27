"""RunDir: the only place that knows file names under results/<name>/<timestamp>/."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from harness.schema.config import BenchmarkConfig, dump_config, load_config
from harness.schema.declare import CASES, PROBES
from harness.schema.environment import ENVIRONMENT, FAILURES, Fitted, read_fitted
from harness.schema.file_names import file_name
from harness.schema.ranks_dir import RanksDir
from harness.schema.reading import is_regular, is_there
from harness.schema.record import READ_VERSIONS, SCHEMA_VERSION, TABLES
from harness.schema.refusal import RefusedError
from harness.schema.text import plain
from harness.schema.whole_files import (
    PART,
    check_no_link,
    make_folder,
    open_in_place,
    remove,
    remove_all,
    rename,
    write_whole,
)

HELD = {kind: tuple(table for table in TABLES if TABLES[table].of == kind) for kind in (CASES, PROBES)}
"""What is finished with a row in `cases`, and what with one in `probes`."""

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system answers that is mounted without them, as Lustre may be."""
_FAILURES, _FAILURES_OF_VERSION_4 = "failures.json", "ends.json"
_TRACE = ".pt.trace.json.gz"
_FOLDERS = ("ranks", "report", "traces", "scratch")
"""Folders other than the tables."""
_PART = re.compile(r"(?P<probe>.+)\.part(?P<number>\d+)", re.DOTALL)
_LAUNCH = re.compile(r"(?P<name>.*?)(\.launch(?P<launch>\d+))?", re.DOTALL)


class RunDir:
    """One run on disk. Files are written completely under another name and then renamed: no reader sees a partial file.

    `path` may be a link, as `latest` is one; nothing below it is written or removed through a link.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, config: BenchmarkConfig, now: datetime.datetime) -> "RunDir":
        """Make `<results_dir>/<name>/<now>/`, alone, and write config.yaml. Raises RefusedError where that cannot be."""
        parent = Path(config.results_dir).absolute() / config.name
        run_dir = None
        try:
            run_dir = cls(_make_alone(parent, now.strftime("%Y-%m-%d_%H-%M-%S")))
            for folder in (*TABLES, "ranks"):
                (run_dir.path / folder).mkdir()
            run_dir.write_config(config)
            _point_latest(parent, run_dir.path.name)
        except OSError as error:
            if run_dir is not None:
                run_dir.discard()
            raise RefusedError(f"results_dir={config.results_dir}: cannot write there: {error.strerror or error}") from error
        return run_dir

    def discard(self) -> None:
        """Remove a run that was refused before anything was measured, and point `latest` to the newest run that is left.

        For the launcher, once no process of the run is left. A run in which any case or probe is listed stays.
        """
        if any(self.listed_by_launch(table) for table in HELD):
            return
        parent, latest = self.path.parent, self.path.parent / "latest"
        with contextlib.suppress(OSError):  # what cannot be removed stays
            led_here = latest.is_symlink() and latest.readlink() == Path(self.path.name)
            shutil.rmtree(self.path, ignore_errors=True)
            left = [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
            if led_here and left:
                _point_latest(parent, max(left, key=lambda path: path.stat().st_mtime_ns).name)
            elif led_here:
                latest.unlink()
            if not left:
                parent.rmdir()

    @classmethod
    def open(cls, path: Path | str) -> "RunDir":
        """Open a run directory. Raises RefusedError if `path` is not one, or if it has another schema_version.

        Raises it also if one of its folders is a link: files would be written or removed in another place.
        """
        run_dir = cls(path)
        if not is_there(run_dir.path / "config.yaml"):
            raise RefusedError(f"{path} is not a run directory: it has no config.yaml")
        for folder in (*TABLES, *_FOLDERS):
            check_no_link(run_dir.path / folder)
        version = run_dir.schema_version
        if version not in READ_VERSIONS:
            hint = "see CHANGELOG" if version is None or version < SCHEMA_VERSION else "try a newer version of reducebench"
            read = " and ".join(map(str, READ_VERSIONS))
            raise RefusedError(f"{path} is of schema_version {version}, and this version reads {read}: {hint}")
        return run_dir

    @property
    def schema_version(self) -> int | None:
        """Version of the files: the current one before the ranks have written it, None if environment.json has null."""
        version: int | None = self.environment().get("schema_version", SCHEMA_VERSION)
        return version

    def check_writable(self) -> None:
        """Raise RefusedError for a run of an earlier version: files of two schemas would stand in one table."""
        if self.schema_version != SCHEMA_VERSION:
            raise RefusedError(
                f"resume={self.path}: is of schema_version {self.schema_version}, which is read but not written; "
                f"accepted: a run of schema_version {SCHEMA_VERSION}; try a new run"
            )

    @property
    def ranks(self) -> RanksDir:
        """What the ranks, and those who supervise them, say of themselves."""
        return RanksDir(self.path / "ranks")

    def config(self) -> BenchmarkConfig:
        """The configuration of the run."""
        return load_config(self.path / "config.yaml")

    def write_config(self, config: BenchmarkConfig) -> None:
        """Write config.yaml."""
        self.write("config.yaml", dump_config(config).encode())

    @property
    def batch_script(self) -> Path:
        """What a batch system was, or is to be, given."""
        return self.path / "job.sbatch"

    def write_batch_script(self, script: str) -> None:
        """For a batch system; a user may read and edit it."""
        self.write(self.batch_script.name, script.encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the run directory itself."""
        write_whole(self.path / name, content, self.path)

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """This process works on it: nobody else is to, meanwhile. Raises RefusedError where another one does.

        The lock goes with its process, however that ends.
        """
        with os.fdopen(open_in_place(self._lock, self.path, os.O_RDWR | os.O_CREAT), "r+") as lock:
            self._hold(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.seek(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[None]:
        """Lock out launchers while the run directory is read; nothing in it changes.

        Raises RefusedError where one is at work.
        """
        try:
            descriptor = open_in_place(self._lock, self.path, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):  # no launcher has worked on it, or the lock belongs to another user
            yield
            return
        with os.fdopen(descriptor) as lock:
            self._hold(lock, fcntl.LOCK_SH)
            yield

    @property
    def _lock(self) -> Path:
        return self.ranks.path / "launcher"

    def _hold(self, lock: IO[str], how: int) -> None:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusedError(f"{self.path} is at work: its launcher is {plain(lock.read())}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"reducebench: {self.path}: this file system has no locks; make sure that no other process works on this run")

    def table(self, table: str) -> Path:
        """The folder of one of TABLES."""
        return self.path / table

    def case_file(self, table: str, case_id: str, launch: int = 0) -> Path:
        """The Parquet file of a case, or of a probe, in one of TABLES, as one launch wrote it.

        The ones in `cases` and `probes` are written last: with it the case, or the probe, is finished.
        """
        return self.table(table) / f"{of_launch(_stem(case_id), launch)}.parquet"

    def listed(self, table: str = "cases", launch: int = 0) -> set[str]:
        """case_ids, or names of probes, that have a file of rows of this launch; each as `file_name` gives it.

        Nothing is read: harness/schema/progress.py knows which of them are finished.
        """
        return self.listed_by_launch(table).get(launch, set())

    def listed_by_launch(self, table: str) -> dict[int, set[str]]:
        """Map each launch that has files of rows to the result of `listed` for it."""
        found: dict[int, set[str]] = {}
        for path in self.table(table).glob("*.parquet"):
            part = _LAUNCH.fullmatch(path.stem)
            if part and not path.name.startswith("."):
                found.setdefault(int(part["launch"] or 0), set()).add(part["name"])
        return found

    def parts(self, probe: str) -> list[str]:
        """Names, for `case_file`, of the parts of a probe that is not finished; in the order in which they were written."""
        return [f"{probe}.part{number}" for number in sorted(self._numbers("probes", probe))]

    def _numbers(self, table: str, probe: str) -> list[int]:
        """Numbers of the parts of a probe that have a file in a table."""
        found = [_PART.fullmatch(path.stem) for path in self.table(table).glob("*.parquet")]
        return [int(part["number"]) for part in found if part and part["probe"] == file_name(probe)]

    def new_part(self, probe: str) -> str:
        """A name for the next part."""
        return f"{probe}.part{1 + max((int(part.rpartition('.part')[2]) for part in self.parts(probe)), default=-1)}"

    def drop_parts(self, probe: str) -> None:
        """Remove the parts of a probe; those of a table of its own, which a crash may have left alone, too."""
        for table in HELD["probes"]:
            for number in self._numbers(table, probe):
                remove(self.case_file(table, f"{probe}.part{number}"), self.path)

    def make_part(self, probe: str) -> None:
        """Take back that a probe is finished, and keep what it left as a part.

        The row that makes it a finished one goes first: a crash midway leaves a part that is not whole, and the probe missing.
        """
        part = self.new_part(probe)
        for table in HELD["probes"]:
            file = self.case_file(table, probe)
            if file.is_file():
                rename(file, self.case_file(table, part).name, self.path)

    def forget(self, table: str, name: str, launch: int = 0) -> None:
        """Take back that a case, or a probe, is finished, with all that it left: it is to be done again."""
        for held in HELD[table]:
            remove(self.case_file(held, name, launch), self.path)

    def trace(self, case_id: str, rank: int) -> Path:
        """The trace of a rank: its name is one that TensorBoard takes for a worker, its folder one that it takes for a run."""
        return self.path / "traces" / file_name(case_id) / f"rank{rank}{_TRACE}"

    def traces(self) -> dict[str, list[Path]]:
        """case_id, as `file_name` gives it, to the traces of its ranks."""
        found: dict[str, list[Path]] = {}
        for path in sorted((self.path / "traces").glob(f"*/rank*{_TRACE}"), key=lambda path: (len(path.name), path.name)):
            if is_regular(path, folders=2):
                found.setdefault(path.parent.name, []).append(path)
        return found

    @property
    def report(self) -> Path:
        """The folder of derived files."""
        return self.path / "report"

    def write_report(self, name: str, content: bytes) -> Path:
        """Write a derived file; returns its path. Raises RefusedError where the folder is a link."""
        path = self.report / name
        make_folder(self.report, self.path)
        write_whole(path, content, self.path)
        return path

    def scratch(self, who: int | str) -> Path:
        """Temporary folder for the gradients of a rank, or for torchrun; removed when the run ends."""
        return self.path / "scratch" / str(who)

    def remove_scratch(self) -> None:
        """Remove gradients, and files left by torchrun or by killed processes; no link is followed."""
        shutil.rmtree(self.path / "scratch", ignore_errors=True)
        for folder in (*TABLES, "ranks"):
            with contextlib.suppress(OSError):
                remove_all(self.path / folder, self.path, f".*{PART}")

    def note_failure(self, failure: Mapping[str, Any]) -> None:
        """Add a world that ended before all was done to failures.json."""
        self.write(_FAILURES, json.dumps([*self.failures(), dict(failure)], indent=2).encode())

    def failures(self) -> list[dict[str, Any]]:
        """Content of failures.json; empty when nothing went wrong."""
        return self.read_failures().content or []

    def read_failures(self) -> Fitted:
        """Return failures.json with its problems."""
        return read_fitted(self.failures_file, FAILURES)

    @property
    def failures_file(self) -> Path:
        """failures.json; in a run of schema_version 4 in which no world has failed since, its former name."""
        new, old = self.path / _FAILURES, self.path / _FAILURES_OF_VERSION_4
        return old if is_there(old) and not is_there(new) else new

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write environment.json."""
        self.write("environment.json", json.dumps(environment, indent=2).encode())

    def environment(self) -> dict[str, Any]:
        """environment.json, as far as it has its declared shape; empty when the run ended before it was written."""
        return self.read_environment().content or {}

    def read_environment(self) -> Fitted:
        """Return environment.json with its problems."""
        return read_fitted(self.path / "environment.json", ENVIRONMENT)


def _stem(name: str) -> str:
    """File name of a case, a probe, or a part of one."""
    part = _PART.fullmatch(name)
    return f"{file_name(part['probe'])}.part{part['number']}" if part else file_name(name)


def of_launch(name: str, launch: int) -> str:
    """Return the name of a case or probe with the launch, unless it is the first."""
    return f"{name}.launch{launch}" if launch else name


def _make_alone(parent: Path, stamp: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for name in _candidates(stamp):
        try:
            (parent / name).mkdir()  # exclusive: two runs of the same second never share a folder
        except FileExistsError:
            continue
        return parent / name
    raise AssertionError("unreachable: the candidates do not end")


def _candidates(stamp: str) -> Iterable[str]:
    yield stamp
    suffix = 2
    while True:
        yield f"{stamp}_{suffix}"
        suffix += 1


def _point_latest(parent: Path, name: str) -> None:
    link = parent / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(parent / "latest")
