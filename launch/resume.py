"""Going on with a run: what is missing in its directory, or failed, is done; what is finished stays as it is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.schema.config import CONDUCT, BenchmarkConfig, figures_digest, node_of, to_config
from harness.schema.file_names import file_name
from harness.schema.matrix import expected_files
from harness.schema.record import FAILED, OK
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.brought import check_owner
from launch.compose import GROUPS, check_typed, compose_config, with_options


@dataclass(frozen=True)
class Going:
    """A run that is to go on."""

    run_dir: RunDir
    config: BenchmarkConfig
    launches: tuple[int, ...]
    """Those that are not complete, or in which something failed."""
    said: str
    """What stands, and what is to be done."""


def is_resume(overrides: Sequence[str]) -> bool:
    """Whether the overrides ask for it."""
    return any(_key(override) == "resume" for override in overrides)


def configure_resume(overrides: Sequence[str]) -> Going:
    """The run that `resume=RUN_DIR` names, with what the other overrides say. Raises RefusedError."""
    path = next(override.partition("=")[2] for override in overrides if _key(override) == "resume")
    if "\0" in path:  # no path may have one; a command line of a shell cannot, and a caller in Python can
        raise RefusedError("resume: has a null byte; accepted: the path of a run directory")
    run_dir = RunDir.open(Path(path.strip("'\"")).resolve())  # `latest` may lead elsewhere a moment later
    run_dir.check_writable()
    with run_dir.looked_at():  # no launcher works on it
        stored = replace(run_dir.config(), accept_changes=False, accept_owner=False, dry_run=False, resume=None)
        config = _changed(stored, overrides)
        if not (config.dry_run or config.accept_owner):
            check_owner(run_dir)
        run_dir.ranks.check_logs()
        if not config.accept_changes:
            _refuse_changes(run_dir, stored, config, overrides)
        undone = _undone(run_dir, config)
        return Going(run_dir, config, undone.launches, _said(run_dir, config, undone))


def go_on(going: Going) -> None:
    """Let the run directory know how it is gone on with."""
    going.run_dir.write_config(replace(going.config, accept_changes=False, accept_owner=False, resume=None))


_MOST = 20
"""Largest number of damaged files that are named."""


@dataclass(frozen=True)
class _Undone:
    """Launch to how many of its cases and probes failed, are missing or not whole, and to how many lack their traces."""

    failed: Counter[int]
    missing: Counter[int]
    untraced: Counter[int]
    damaged: tuple[tuple[str, str], ...] = ()
    """Files that are not whole, and why."""

    @property
    def launches(self) -> tuple[int, ...]:
        return tuple(sorted(+(self.failed + self.missing + self.untraced)))


def undone_launches(run_dir: RunDir, config: BenchmarkConfig) -> tuple[int, ...]:
    """Launches that lack something, or in which something failed."""
    return _undone(run_dir, config).launches


def _undone(run_dir: RunDir, config: BenchmarkConfig) -> _Undone:
    """`config` may ask for more launches than the run began with."""
    from harness.report.frame import load_run  # pandas: nobody measures yet

    run = load_run(run_dir.path)
    missing = {*run.missing, *run_dir.missing(config=config)}
    cases = run.launched.launch[run.launched.status == FAILED]
    probes = set(run.probes.probe[run.probes.status == FAILED]) - missing  # an unfinished one has rows, too
    failed = Counter(map(int, cases)) + Counter(0 for _ in probes)
    measured = run.launched.case_id[(run.launched.launch == 0) & (run.launched.status == OK)]
    traces = run_dir.traces() if config.profile else {}
    lacking = [case for case in measured if config.profile and len(traces.get(file_name(case), ())) < config.world_size]
    return _Undone(failed, Counter(map(run_dir.launch_of, missing)), Counter({0: len(lacking)}), tuple(run.damaged.items()))


def _said(run_dir: RunDir, config: BenchmarkConfig, undone: _Undone) -> str:
    failed, missing, untraced = undone.failed.total(), undone.missing.total(), undone.untraced.total()
    asked = len(expected_files(config)["probes"]) + config.launches * len(expected_files(config)["cases"])
    damaged = "".join(f"\nnot whole: {file}: {why}" for file, why in undone.damaged[:_MOST])
    damaged += f"\nnot whole: {len(undone.damaged) - _MOST} more files" if len(undone.damaged) > _MOST else ""
    if not undone.launches:
        return f"nothing to do: all {asked} cases and probes of {run_dir.path} are there{damaged}"
    traces = f"; {untraced} cases lack their traces" if untraced else ""
    stand, kept = asked - missing - failed, _kept(run_dir, config)
    now = f"{failed} failed and {missing} missing ones are done now"
    return f"{stand} of {asked} cases and probes stand; {now}{kept}{traces}{damaged}"


def _kept(run_dir: RunDir, config: BenchmarkConfig) -> str:
    """Count the answers of probes that are not finished."""
    from harness.schema.tables import kept_answers  # pyarrow: nobody measures yet

    counts = {name: kept_answers(run_dir, name) for name in expected_files(config)["probes"] if run_dir.parts(name)}
    return "".join(
        f", but for {count} answer{'s' * (count > 1)} of {name}, which stand" for name, count in counts.items() if count
    )


def _changed(stored: BenchmarkConfig, overrides: Sequence[str]) -> BenchmarkConfig:
    """The stored configuration with the overrides upon it."""
    chosen = [override for override in overrides if _key(override) == "launch"]
    others = [override.lstrip("+") for override in overrides if override not in chosen]
    groups = [_key(override) for override in others if _key(override) in GROUPS]
    if groups:
        raise RefusedError(f"{groups[0]}: a run that goes on keeps its cases; other ones are another run")
    base = node_of(replace(stored, launch=compose_config(chosen).launch) if chosen else stored)
    try:
        given = OmegaConf.from_dotlist(others)
        merged = OmegaConf.merge(base, given)
    except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise RefusedError(f"resume: cannot read the overrides: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    for key, value in OmegaConf.to_container(given).items():  # type: ignore[union-attr]
        check_typed(str(key), value)
    return with_options(to_config(merged))


def _refuse_changes(run_dir: RunDir, stored: BenchmarkConfig, config: BenchmarkConfig, overrides: Sequence[str]) -> None:
    read = run_dir.read_environment()
    environment = read.content or {}
    if (read.problems or not environment) and run_dir.finished():
        why = f" ({read.problems[0]})" if read.problems else ""
        raise RefusedError(
            f"{run_dir.path}/environment.json is missing or not whole{why}: cannot check that new results are "
            "comparable with the existing ones; try accept_changes=true to go on"
        )
    began_with = environment.get("config_sha256")
    if began_with and began_with != figures_digest(stored):
        raise RefusedError(f"{run_dir.path}/config.yaml has changed since the run began; accept_changes=true goes on with it")
    before, now = asdict(stored), asdict(config)
    changed = {key for key in now if key not in CONDUCT and before[key] != now[key]}
    changing = [override for override in overrides if _key(override).split(".")[0] in changed]
    if changing:
        raise RefusedError(f"{changing[0]}: the run began with another configuration; accept_changes=true goes on with this")


def check_ranks_stay(going: Going) -> None:
    """`launch.hosts` and the like say how many ranks there are, too. Raises RefusedError."""
    began, now = going.run_dir.config(), going.config
    if began.torchrun != now.torchrun and not now.accept_changes:
        raise RefusedError(
            f"the run began with {began.world_size} ranks on {began.torchrun.nnodes} hosts, and this would be {now.world_size} "
            f"on {now.torchrun.nnodes}; accept_changes=true goes on"
        )


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
