"""A run as MLflow runs: one of the whole, with report and environment, and one beneath it for each case and launch."""

import os
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
)

from harness.report.export.content import Content, contents
from harness.report.frame import Run
from harness.report.render import report_of, write
from harness.schema.file_names import file_name
from harness.schema.reading import is_regular, read_text
from harness.schema.refusal import RefusedError

T = TypeVar("T")
_UNSAFE = re.compile(r"[^\w.\- /]", re.ASCII)
_DONE = "FINISHED"


def export(run: Run, to: str | None, experiment: str | None) -> str:
    """Log to the tracking server or store `to`, by default where MLflow itself would; returns what was made.

    Raises RefusedError where MLflow takes it not.
    """
    name = experiment or f"reducebench/{run.config.name}"
    try:
        client = MlflowClient(tracking_uri=to)
        return _log_all(client, run, name, _experiment(client, name, to or os.environ.get("MLFLOW_TRACKING_URI")))
    except MlflowException as error:
        raise RefusedError(f"export mlflow: {error}") from error


def _log_all(client: MlflowClient, run: Run, name: str, experiment: str) -> str:
    pages = _pages(run)
    whole = client.create_run(experiment, run_name=run.path.resolve().name)
    tags = {"reducebench.run": str(run.path), "reducebench.commit": str(run.environment.get("commit"))}
    client.log_batch(whole.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    for content in contents(run):
        _log_case(client, whole.info.experiment_id, whole.info.run_id, content)
    for file, text in pages.items():
        client.log_text(whole.info.run_id, text, file)
    client.set_terminated(whole.info.run_id, _DONE)
    return f"experiment {name}, run {whole.info.run_id}"


def _experiment(client: MlflowClient, name: str, store: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, _artifacts(store, name)))


def _artifacts(store: str | None, name: str) -> str | None:
    """Artifact location of a new experiment; None to use the default of MLflow, which for a database would be ./mlruns.

    For SQLite it is a folder next to the database file. Raises RefusedError for other databases.
    """
    kind = (store or "").partition(":")[0].partition("+")[0]
    if store is None or kind not in DATABASE_ENGINES:
        return None
    from sqlalchemy.engine import make_url  # a client of a server needs none

    file = make_url(store).database
    if kind != "sqlite" or not file or file == ":memory:":
        raise RefusedError(
            "export mlflow: this database does not say where files are kept; try --to with an MLflow server, or make the "
            f"experiment {name} with an artifact location first"
        )
    return (Path(file).absolute().parent / "mlartifacts").as_uri()


def _log_case(client: MlflowClient, experiment: str, parent: str, content: Content) -> None:
    run = client.create_run(experiment, tags={MLFLOW_PARENT_RUN_ID: parent, MLFLOW_RUN_NAME: content.case_id})
    settings = {**content.settings, "case_id": content.case_id, "launch": content.launch}
    parameters = [Param(_key(key), str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in settings.items()]
    now = int(time.time() * 1e3)
    metrics = [Metric(_key(name), value, now, 0) for name, value in content.figures.items()]
    metrics += [
        Metric(_key(f"seconds/{name}"), value, now, iteration)
        for name, series in content.seconds.items()
        for iteration, value in series
    ]
    for some in _batches(parameters, MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run.info.run_id, params=some)
    for few in _batches(metrics, MAX_METRICS_PER_BATCH):
        client.log_batch(run.info.run_id, metrics=few)
    client.set_terminated(run.info.run_id, _DONE)


def _pages(run: Run) -> dict[str, str]:
    """Map file name to content: the report, rendered again, and config.yaml and environment.json unless they are links."""
    own = [run.path / name for name in ("config.yaml", "environment.json") if is_regular(run.path / name)]
    return {path.name: read_text(path) for path in own} | {"report.md": read_text(write(report_of(run)), folders=1)}


def _batches(entries: Iterable[T], size: int) -> Iterator[list[T]]:
    """As many at a time as MLflow takes."""
    left = iter(entries)
    while some := list(islice(left, size)):
        yield some


def _key(name: str) -> str:
    """Convert a key to the characters that MLflow accepts. A file store creates a folder for each part of it."""
    return _UNSAFE.sub("_", "/".join(map(file_name, name.split("/"))))[:MAX_ENTITY_KEY_LENGTH]
