"""A run as TensorBoard's event files, written by TensorBoard's own library."""

import re
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import HParam, Metric, hparams_config_pb, hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from harness.report.environment import environment_table
from harness.report.export.content import Content, contents
from harness.report.frame import Run
from harness.report.tables import Table
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir

_EVENTS = "events.out.tfevents.*"
_UNSAFE = re.compile(r"[^\w.=-]|^\.+", re.ASCII)


def export(run: Run, to: str | None) -> str:
    """Write a folder a case and launch below `to`, by default the run's report/tensorboard; returns what shows it.

    Raises RefusedError where it cannot write there.
    """
    top = Path(to) if to else RunDir(run.path).report / "tensorboard"
    try:
        _write_all(run, top / _safe(run.config.name) / _safe(run.path.resolve().name))
    except OSError as error:
        raise RefusedError(f"--to {top}: cannot write there: {error.strerror or error}") from error
    return f"tensorboard --logdir {top}"


def _write_all(run: Run, folder: Path) -> None:
    told = list(contents(run))
    settings = sorted({key for content in told for key in content.settings})
    figures = sorted({key for content in told for key in content.figures})
    columns = hparams_config_pb([HParam(key) for key in settings], [Metric(key) for key in figures])
    environment = Table("Environment", environment_table(run.environment)).markdown()
    _write(folder, [(0, columns), (0, text_pb("environment", environment))])
    for content in told:
        place = folder / _safe(content.case_id)
        _write(place / f"launch{content.launch}" if run.config.launches > 1 else place, _summaries(content))


def _summaries(content: Content) -> list[tuple[int, Summary]]:
    """(step, summary): an iteration's number, or 0 for what is of the whole case."""
    series = [
        (iteration, scalar_pb(f"seconds/{name}", value))
        for name, values in content.seconds.items()
        for iteration, value in values
    ]
    figures = [(0, scalar_pb(name, value)) for name, value in content.figures.items()]
    return [(0, hparams_pb(content.settings, f"{content.case_id}/launch{content.launch}")), *figures, *series]


def _write(folder: Path, summaries: list[tuple[int, Summary]]) -> None:
    """In place of what an earlier export of the same run left there."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob(_EVENTS):
        earlier.unlink()
    writer = EventFileWriter(str(folder))
    for step, summary in summaries:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary.FromString(summary.SerializeToString())))
    writer.close()


def _safe(name: str) -> str:
    """As one folder's name: names in a run directory come from outside."""
    return _UNSAFE.sub("_", name)
