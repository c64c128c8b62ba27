"""Going on with a run: what is missing in its directory, or failed, is done; what is finished stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.schema.arguments import ARGUMENTS, Arguments
from harness.schema.config import BenchmarkConfig, figures_digest, node_of, to_config, values_affecting
from harness.schema.file_names import file_name
from harness.schema.progress import Progress, damaged_files, read_progress
from harness.schema.record import FAILED, OK
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.brought import check_owner
from launch.compose import GROUPS, arguments_of, check_typed, compose_config, explain, with_options
from launch.flags import check_given_once, key_of


@dataclass(frozen=True)
class Going:
    """A run that is to go on."""

    run_dir: RunDir
    config: BenchmarkConfig
    arguments: Arguments
    launches: tuple[int, ...]
    """Those that are not complete, or in which something failed."""
    said: str
    """What stands, and what is to be done."""


def is_resume(overrides: Sequence[str], flags: Mapping[str, Any]) -> bool:
    """Return True if the command resumes a run."""
    return "resume" in flags or any(key_of(override) == "resume" for override in overrides)


def configure_resume(overrides: Sequence[str], flags: Mapping[str, Any] | None = None) -> Going:
    """Return the run that --resume or `resume=RUN_DIR` names, with what the other overrides say. Raises RefusedError."""
    flags = flags or {}
    check_given_once(overrides, flags)
    given = (override.partition("=")[2].strip("'\"") for override in overrides if key_of(override) == "resume")
    path = flags["resume"] if "resume" in flags else next(given)
    if path in ("", "null"):
        raise RefusedError(f"resume={path}: names no run; accepted: the path of a run directory; try --resume RUN_DIR")
    if "\0" in path:  # no path may have one; a command line of a shell cannot, and a caller in Python can
        raise RefusedError("resume: has a null byte; accepted: the path of a run directory")
    run_dir = RunDir.open(Path(path).resolve())  # `latest` may lead elsewhere a moment later
    run_dir.check_writable()
    with run_dir.looked_at():  # no launcher works on it
        stored = run_dir.config()
        config, arguments = _changed(stored, overrides, flags)
        if not (arguments.dry_run or arguments.accept_owner):
            check_owner(run_dir)
        run_dir.ranks.check_logs()
        if not arguments.accept_changes:
            _refuse_changes(run_dir, stored, config, overrides)
        undone = _undone(run_dir, config)
        return Going(run_dir, config, arguments, undone.launches, _said(run_dir, undone))


def go_on(going: Going) -> None:
    """Let the run directory know how it is gone on with."""
    going.run_dir.write_config(going.config)


_MOST = 20
"""Largest number of damaged files that are named."""


@dataclass(frozen=True)
class _Undone:
    """Progress of a run, and the number of cases that lack their traces."""

    progress: Progress
    untraced: int
    damaged: dict[str, str]
    """Files that are not whole, and why."""

    @property
    def launches(self) -> tuple[int, ...]:
        """Launches in which something failed, is missing or not whole, or lacks traces."""
        entries = [*self.progress.unfinished, *self.progress.of(FAILED)]
        return tuple(sorted({*(entry.launch for entry in entries), *([0] if self.untraced else [])}))


def undone_launches(run_dir: RunDir, config: BenchmarkConfig) -> tuple[int, ...]:
    """Launches that lack something, or in which something failed."""
    return _undone(run_dir, config).launches


def _undone(run_dir: RunDir, config: BenchmarkConfig) -> _Undone:
    """`config` may ask for more launches than the run began with."""
    progress = read_progress(run_dir, config)
    return _Undone(progress, _untraced(run_dir, config, progress), damaged_files(run_dir, progress))


def _untraced(run_dir: RunDir, config: BenchmarkConfig, progress: Progress) -> int:
    """Number of measured cases that lack the trace of a rank, where traces are asked for; the first launch writes them."""
    if not config.profile:
        return 0
    traces, names = run_dir.traces(), [entry.name for entry in progress.cases(0) if entry.status == OK]
    return sum(len(traces.get(file_name(name), ())) < config.world_size for name in names)


def _said(run_dir: RunDir, undone: _Undone) -> str:
    progress, untraced, files = undone.progress, undone.untraced, list(undone.damaged.items())
    damaged = "".join(f"\nnot whole: {file}: {why}" for file, why in files[:_MOST])
    damaged += f"\nnot whole: {len(files) - _MOST} more files" if len(files) > _MOST else ""
    asked, failed, missing = len(progress.entries), len(progress.of(FAILED)), len(progress.unfinished)
    if not undone.launches:
        return f"nothing to do: all {asked} cases and probes of {run_dir.path} are there{damaged}"
    traces = f"; {untraced} cases lack their traces" if untraced else ""
    now = f"{failed} failed and {missing} missing ones are done now"
    return f"{asked - missing - failed} of {asked} cases and probes stand; {now}{_kept(progress)}{traces}{damaged}"


def _kept(progress: Progress) -> str:
    """Count the answers of probes that are not finished."""
    begun = [entry for entry in progress.entries if entry.answers]
    return "".join(
        f", but for {entry.answers} answer{'s' * (entry.answers > 1)} of {entry.name}, which stand" for entry in begun
    )


def _changed(stored: BenchmarkConfig, overrides: Sequence[str], flags: Mapping[str, Any]) -> tuple[BenchmarkConfig, Arguments]:
    """The stored configuration with the overrides upon it, and the arguments of the resume."""
    chosen = [override for override in overrides if key_of(override) == "launch"]
    others = [override.lstrip("+") for override in overrides if override not in chosen and key_of(override) != "resume"]
    deleted = next((override for override in others if override.startswith("~")), "")
    if deleted:
        raise RefusedError(f"{deleted}: resume deletes no key of a run; accepted: key=value; try --accept-changes with a value")
    groups = [key_of(override) for override in others if key_of(override) in GROUPS]
    if groups:
        raise RefusedError(
            f"{groups[0]}: resume cannot change which cases run; accepted: the options of the run; try a new run"
        )
    base = node_of(replace(stored, launch=compose_config(chosen).launch) if chosen else stored)
    try:
        values = {str(name): value for name, value in OmegaConf.to_container(OmegaConf.from_dotlist(others)).items()}  # type: ignore[union-attr]
        asked = {name: values.pop(name) for name in ARGUMENTS if name in values}
        merged = OmegaConf.merge(base, values)
    except OmegaConfBaseException as error:
        raise RefusedError(explain(error)) from error
    except (ValueError, yaml.YAMLError) as error:
        raise RefusedError(f"resume: cannot read the overrides: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    for name, value in (values | asked).items():
        check_typed(name, value)
    config = with_options(to_config(merged))
    return config, _arguments({**asked, **flags}, config)


def _arguments(given: Mapping[str, Any], config: BenchmarkConfig) -> Arguments:
    """Raise RefusedError for arguments that make several runs."""
    several = [name for name in ("world_sizes", "nccl_matrix") if given.get(name)]
    if several:
        raise RefusedError(f"{several[0]}: makes several runs, and --resume continues one; try --resume without {several[0]}")
    return arguments_of(given, config)


def _refuse_changes(run_dir: RunDir, stored: BenchmarkConfig, config: BenchmarkConfig, overrides: Sequence[str]) -> None:
    read = run_dir.read_environment()
    environment = read.content or {}
    if (read.problems or not environment) and run_dir.listed():
        why = f" ({read.problems[0]})" if read.problems else ""
        raise RefusedError(
            f"{run_dir.path}/environment.json is missing or not whole{why}: cannot check that new results are "
            "comparable with the existing ones; try --accept-changes to go on"
        )
    began_with = environment.get("config_sha256")
    if began_with and began_with != figures_digest(stored):
        raise RefusedError(
            f"{run_dir.path}/config.yaml has changed since the run began; try --accept-changes to continue with it"
        )
    before, now = (values_affecting(one, "results", "times", "selection", "location") for one in (stored, config))
    changed = {name for name in now if before.get(name) != now[name]}
    changing = [override for override in overrides if any(_touches(key_of(override), name) for name in changed)]
    if changing:
        raise RefusedError(f"{changing[0]}: not the value that the run began with; accepted: that value; try --accept-changes")


def _touches(given: str, name: str) -> bool:
    """Return True if an override of `given`, a key or a mapping of keys, sets the key `name`, or a part of its value."""
    return given == name or given.startswith(f"{name}.") or name.startswith(f"{given}.")


def check_ranks_stay(going: Going) -> None:
    """`launch.hosts` and the like say how many ranks there are, too. Raises RefusedError."""
    began, now = going.run_dir.config(), going.config
    if began.torchrun != now.torchrun and not going.arguments.accept_changes:
        raise RefusedError(
            f"the run began with {began.world_size} ranks on {began.torchrun.nnodes} hosts, and this would be {now.world_size} "
            f"on {now.torchrun.nnodes}; accepted: as many as before; try --accept-changes"
        )
