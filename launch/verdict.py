"""What became of a run, read from its directory: exit status 0, 1 or 2, and what a person must be told."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import TorchrunNodes
from harness.schema.progress import Progress, read_progress
from harness.schema.rank_state import RankStatus
from harness.schema.run_dir import RunDir
from launch.deaths import Death
from launch.last_words import end_of_log, names_an_error
from launch.patience import Ended

SUCCESS, FAILURE, REFUSAL = 0, 1, 2
_NAMED = 8
"""Ranks that are listed: beside one that refuses alone, or that never reported."""


@dataclass(frozen=True)
class Verdict:
    """Exit status, and lines for the user."""

    status: int
    lines: tuple[str, ...] = ()
    stopped: bool = False
    """A signal to the launcher cut the run short: whoever sent it wants no further one."""
    complete: bool = False
    """True if every case and probe that was asked for is finished, or failed."""
    unfinished: int = 0
    """Number of cases and probes of the launch that are missing or damaged."""


def judge(run_dir: RunDir, ended: Ended, culprits: Sequence[Death], launch: int = 0) -> Verdict:
    """The verdict on a world whose processes have all ended."""
    statuses = run_dir.ranks.statuses()
    refused = [status for status in statuses if status.ended == "refused"]
    if refused:
        return Verdict(REFUSAL, (_refusal(refused[0], [status for status in statuses if status.ended != "refused"]),))
    config = run_dir.config()
    progress = read_progress(run_dir, config, launch)
    left = len(progress.unfinished)
    well = len(statuses) == config.world_size and all(status.ended == "done" for status in statuses)
    if not left and well:
        return Verdict(SUCCESS, stopped=bool(ended.signal), complete=True)
    counted = _counted(config, progress, launch)
    if ended.signal:
        return Verdict(FAILURE, (f"ended by {ended.signal}: {counted}",), stopped=True, unfinished=left)
    lines = (*map(str, culprits), *_absent(run_dir, config, ended, statuses, culprits), counted)
    return Verdict(FAILURE, lines, unfinished=left)


def _refusal(status: RankStatus, others: Sequence[RankStatus]) -> str:
    """What ranks refuse alike needs no name of theirs."""
    if not others:
        return status.words
    places = [f"rank {other.rank} was in phase {other.phase}" for other in others[:_NAMED]]
    more = f"; and {len(others) - _NAMED} ranks more" if len(others) > _NAMED else ""
    return f"rank {status.rank} on {status.host}, in phase {status.phase}: {status.words}; {'; '.join(places)}{more}"


def _counted(config: BenchmarkConfig, progress: Progress, launch: int) -> str:
    """Count what is finished or failed, and the answers of unfinished probes: a run that goes on keeps them."""
    total = len(progress.entries)
    probes = " and probes" * any(entry.table == "probes" for entry in progress.entries)
    where = f" in launch {launch}" if config.launches > 1 else ""
    begun = [entry for entry in progress.entries if entry.answers]
    kept = "".join(f"; and {entry.answers} answer{'s' * (entry.answers > 1)} of probe {entry.name}" for entry in begun)
    return f"{total - len(progress.unfinished)} of {total} cases{probes} are finished and kept{where}{kept}"


def _absent(
    run_dir: RunDir, config: BenchmarkConfig, ended: Ended, statuses: Sequence[RankStatus], culprits: Sequence[Death]
) -> list[str]:
    """Hosts, or ranks, that never came, where no rank is to blame; torchrun starts none before all its hosts have met."""
    here, nodes = {status.rank for status in statuses}, config.torchrun.nnodes
    if any(culprit.rank is not None for culprit in culprits):
        return []
    within = f" within rendezvous_s={config.rendezvous_s:g}" if ended.late else ""  # else the world ended before that time
    absent = run_dir.ranks.absent_nodes(nodes) if nodes > 1 else []
    if absent:
        return [f"{_host(config, node)} never came{within}; see {run_dir.ranks.path}" for node in absent]
    missing = [rank for rank in range(config.world_size) if rank not in here]
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    which = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:_NAMED]))}{more}"
    return (
        [f"{which} never reported{within}{_said_by_torchrun(run_dir, culprits)}; see {run_dir.ranks.path}"] if missing else []
    )


def _said_by_torchrun(run_dir: RunDir, culprits: Sequence[Death]) -> str:
    """The last words of torchrun's logs, where no rank has reported an ending."""
    logs = [] if culprits else sorted(path.stem for path in run_dir.ranks.path.glob("torchrun*.log"))
    telling = [log for log in logs if names_an_error(run_dir, log)] or logs
    return "".join(f"; {end}" for log in telling if (end := end_of_log(run_dir, log)))


def _host(config: BenchmarkConfig, node: int) -> str:
    hosts = config.launcher.hosts if isinstance(config.launcher, TorchrunNodes) else []
    return f"node {node}" + (f" ({hosts[node]})" if hosts else "")
