"""A run as MLflow runs: one of the whole, with report and environment, and one beneath it for each case and launch."""

import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
)

from harness.report.export.content import Content, contents
from harness.report.frame import Run
from harness.report.render import build, write
from harness.schema.reading import is_regular
from harness.schema.refusal import RefusedError

T = TypeVar("T")
_UNSAFE = re.compile(r"[^\w.\- /]", re.ASCII)
_DONE = "FINISHED"


def export(run: Run, to: str | None, experiment: str | None) -> str:
    """Log to the tracking server or store `to`, by default where MLflow itself would; returns what was made.

    Raises RefusedError where MLflow takes it not.
    """
    try:
        return _log_all(MlflowClient(tracking_uri=to), run, experiment or f"reducebench/{run.config.name}")
    except MlflowException as error:
        raise RefusedError(f"export mlflow: {error}") from error


def _log_all(client: MlflowClient, run: Run, name: str) -> str:
    whole = client.create_run(_experiment(client, name), run_name=run.path.resolve().name)
    tags = {"reducebench.run": str(run.path), "reducebench.commit": str(run.environment.get("commit"))}
    client.log_batch(whole.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    for content in contents(run):
        _log_case(client, whole.info.experiment_id, whole.info.run_id, content)
    for path in _pages(run):
        client.log_artifact(whole.info.run_id, str(path))
    client.set_terminated(whole.info.run_id, _DONE)
    return f"experiment {name}, run {whole.info.run_id}"


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


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


def _pages(run: Run) -> list[Path]:
    """The report, rendered anew, and what the run directory says of itself."""
    return [
        write(build(run.path)),
        *(run.path / name for name in ("config.yaml", "environment.json") if is_regular(run.path / name)),
    ]


def _batches(entries: Iterable[T], size: int) -> Iterator[list[T]]:
    """As many at a time as MLflow takes."""
    left = iter(entries)
    while some := list(islice(left, size)):
        yield some


def _key(name: str) -> str:
    """As MLflow allows it."""
    return _UNSAFE.sub("_", name)[:MAX_ENTITY_KEY_LENGTH]
