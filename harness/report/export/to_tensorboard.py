"""A run as TensorBoard's event files, written by TensorBoard's own library."""

import socket
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from harness.report.environment import environment_table
from harness.report.export.content import Content, contents
from harness.report.frame import Run
from harness.report.tables import Table
from harness.schema.file_names import file_name
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.whole_files import make_folder, remove_all, writing

_EVENTS = "events.out.tfevents."
_VERSION = "brain.Event:2"
"""Version of the format, written in the first record of a file."""


def export(run: Run, to: str | None) -> str:
    """Write a folder a case and launch below `to`, by default the run's report/tensorboard; returns what shows it.

    Raises RefusedError where it cannot write there. `to` may be a link; no folder below it, or of the run, may be one.
    """
    top = Path(to) if to else RunDir(run.path).report / "tensorboard"
    try:
        if to:
            top.mkdir(parents=True, exist_ok=True)
        folder = top / file_name(run.config.name) / file_name(run.path.resolve().name)
        _write_all(run, folder, below=top if to else run.path)
    except OSError as error:
        raise RefusedError(f"--to {top}: cannot write there: {error.strerror or error}") from error
    return f"tensorboard --logdir {top}"


def _write_all(run: Run, folder: Path, below: Path) -> None:
    told = list(contents(run))
    settings = sorted({key for content in told for key in content.settings})
    figures = sorted({key for content in told for key in content.figures})
    columns = hparams_config_pb([HParam(key) for key in settings], [Metric(key) for key in figures])
    environment = Table("Environment", environment_table(run.environment)).markdown()
    _write(folder, below, [(0, columns), (0, text_pb("environment", environment))])
    for content in told:
        place = folder / file_name(content.case_id)
        _write(place / f"launch{content.launch}" if run.config.launches > 1 else place, below, _summaries(content))


def _summaries(content: Content) -> list[tuple[int, Summary]]:
    """(step, summary): an iteration's number, or 0 for what is of the whole case."""
    series = [
        (iteration, scalar_pb(f"seconds/{name}", value))
        for name, values in content.seconds.items()
        for iteration, value in values
    ]
    figures = [(0, scalar_pb(name, value)) for name, value in content.figures.items()]
    return [(0, hparams_pb(content.settings, f"{content.case_id}/launch{content.launch}")), *figures, *series]


def _write(folder: Path, below: Path, summaries: list[tuple[int, Summary]]) -> None:
    """Write the summaries in place of an earlier export of the same run.

    TensorBoard's own writer of event files opens one by its path, and would follow a link.
    """
    make_folder(folder, below)
    remove_all(folder, below, f"{_EVENTS}*")
    with writing(folder / f"{_EVENTS}{int(time.time()):010d}.{socket.gethostname()}", below) as file:
        records = RecordWriter(file)
        for event in _events(summaries):
            records.write(event.SerializeToString())


def _events(summaries: list[tuple[int, Summary]]) -> Iterable[Event]:
    yield Event(wall_time=time.time(), file_version=_VERSION)
    for step, summary in summaries:
        yield Event(wall_time=time.time(), step=step, summary=Summary.FromString(summary.SerializeToString()))
