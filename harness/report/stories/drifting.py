"""How far two ways of a probe drift apart, for the stories."""

from harness.report.frame import Run
from harness.report.stories.claims import NO_STEPS, NotSeenError, Verdict, matters, seen


def drift_of_probe(run: Run, probe: str, what: str) -> Verdict:
    """Over all workloads, pairs and optimizers of a probe. Raises NotSeenError."""
    if not run.config.drift.steps:
        raise NotSeenError(NO_STEPS)
    parameters = seen(run, probe, quantity="parameters, relative_l2").value
    losses = seen(run, probe, quantity="loss").merge(
        seen(run, probe, quantity="against_loss"), on=["subject", "setting", "rank"]
    )
    return matters(run, parameters, losses.value_x, losses.value_y, what)
