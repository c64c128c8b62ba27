"""What a run had of its machine."""

from harness.report.frame import Run


def ranks(run: Run) -> int:
    """World size."""
    return int(run.environment.get("world_size") or 1)


def threads(run: Run) -> int:
    """Of all ranks."""
    return ranks(run) * run.config.threads_per_rank


def cores(run: Run) -> int:
    """Of all hosts."""
    hosts = {rank.get("host") for rank in run.environment.get("ranks", [])}
    return int(run.environment.get("cores") or 1) * max(1, len(hosts))
