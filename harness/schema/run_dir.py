"""RunDir: the only place that knows file names under results/<name>/<timestamp>/."""

import contextlib
import datetime
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.schema.config import BenchmarkConfig, dump_config, load_config
from harness.schema.matrix import expected_files
from harness.schema.rank_state import RankStatus, read_rank_status
from harness.schema.record import SCHEMA_VERSION
from harness.schema.refusal import RefusedError

TABLES = ("cases", "samples", "memory", "discrepancies", "findings", "drifts", "probes", "observations", "collectives")

_TRACE = ".pt.trace.json.gz"
_LAUNCH = re.compile(r"(?P<name>.*?)(\.launch(?P<launch>\d+))?")


class RunDir:
    """One run on disk. Files are written whole under another name and then renamed, so none is ever seen half written."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, config: BenchmarkConfig, now: datetime.datetime) -> "RunDir":
        """Make `<results_dir>/<name>/<now>/`, alone, and write config.yaml. Raises RefusedError where that cannot be."""
        parent = Path(config.results_dir).absolute() / config.name
        try:
            run_dir = cls(_make_alone(parent, now.strftime("%Y-%m-%d_%H-%M-%S")))
            for folder in (*TABLES, "ranks"):
                (run_dir.path / folder).mkdir()
            run_dir.write(run_dir.path / "config.yaml", dump_config(config).encode())
            _point_latest(parent, run_dir.path.name)
        except OSError as error:
            raise RefusedError(f"results_dir={config.results_dir}: cannot write there: {error.strerror or error}") from error
        return run_dir

    @classmethod
    def open(cls, path: Path | str) -> "RunDir":
        """An existing run directory. Raises RefusedError when `path` is none, or one of another schema_version."""
        run_dir = cls(path)
        if not (run_dir.path / "config.yaml").is_file():
            raise RefusedError(f"{path} is not a run directory: it has no config.yaml")
        version = run_dir.environment().get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise RefusedError(f"{path} is of schema_version {version}, and this version reads {SCHEMA_VERSION}: see CHANGELOG")
        return run_dir

    def config(self) -> BenchmarkConfig:
        """The configuration of the run."""
        return load_config(self.path / "config.yaml")

    def table(self, table: str) -> Path:
        """The folder of one of TABLES."""
        return self.path / table

    def case_file(self, table: str, case_id: str, launch: int = 0) -> Path:
        """The Parquet file of a case, or of a probe, in one of TABLES, as one launch wrote it.

        The ones in `cases` and `probes` are written last: with it the case, or the probe, is finished.
        """
        return self.table(table) / f"{_of_launch(case_id, launch)}.parquet"

    def finished(self, table: str = "cases", launch: int = 0) -> set[str]:
        """case_ids, or names of probes, whose rows of this launch are complete."""
        names = [path.stem for path in self.table(table).glob("*.parquet") if not path.name.startswith(".")]
        parts = [_LAUNCH.fullmatch(name) for name in names]
        return {part["name"] for part in parts if part and int(part["launch"] or 0) == launch}

    def missing(self, launch: int | None = None) -> list[str]:
        """Cases and probes that the configuration asks for and that are not finished; in one launch, or in any of them."""
        config = self.config()
        asked = range(config.launches) if launch is None else [launch]
        return [name for number in asked for name in self._missing(expected_files(config, number), number)]

    def _missing(self, expected: dict[str, list[str]], launch: int) -> list[str]:
        finished = {table: self.finished(table, launch) for table in expected}
        return [_of_launch(name, launch) for table, names in expected.items() for name in names if name not in finished[table]]

    def trace(self, case_id: str, rank: int) -> Path:
        """The trace of a rank: its name is one that TensorBoard takes for a worker, its folder one that it takes for a run."""
        return self.path / "traces" / case_id / f"rank{rank}{_TRACE}"

    def traces(self) -> dict[str, list[Path]]:
        """case_id to the traces of its ranks."""
        found: dict[str, list[Path]] = {}
        for path in sorted((self.path / "traces").glob(f"*/rank*{_TRACE}"), key=lambda path: (len(path.name), path.name)):
            found.setdefault(path.parent.name, []).append(path)
        return found

    @property
    def report(self) -> Path:
        """The folder of derived files."""
        return self.path / "report"

    def scratch(self, rank: int) -> Path:
        """Gradients of a rank that wait to be compared; gone when the run ends."""
        return self.path / "scratch" / str(rank)

    def remove_scratch(self) -> None:
        """Drop the waiting gradients of all ranks."""
        shutil.rmtree(self.path / "scratch", ignore_errors=True)

    def log(self, who: int | str) -> Path:
        """What rank `who`, or torchrun, said."""
        return self.path / "ranks" / f"{who}.log"

    def rank_state(self, rank: int) -> Path:
        """The file of a rank's RankState."""
        return self.path / "ranks" / f"{rank}.state"

    def forget_ranks(self) -> None:
        """Drop the states of an earlier launch, so that its ranks are not taken for those of the next."""
        for path in (self.path / "ranks").glob("*.state"):
            path.unlink()

    def rank_statuses(self) -> list[RankStatus]:
        """What the ranks that reported at all are doing, or were doing last; in order of rank."""
        found = (read_rank_status(path) for path in (self.path / "ranks").glob("*.state"))
        return sorted((status for status in found if status), key=lambda status: status.rank)

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write environment.json."""
        self.write(self.path / "environment.json", json.dumps(environment, indent=2).encode())

    def environment(self) -> dict[str, Any]:
        """environment.json; empty when the run ended before it was written."""
        try:
            loaded = json.loads((self.path / "environment.json").read_text())
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}

    @staticmethod
    def write(path: Path, content: bytes) -> None:
        """Write a file whole: under another name, to the disk, then renamed."""
        with writing(path) as part, part.open("wb") as file:
            file.write(content)


def _of_launch(name: str, launch: int) -> str:
    return f"{name}.launch{launch}" if launch else name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A hidden name to write to; it becomes `path` when the block ends without an error."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
