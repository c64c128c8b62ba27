"""From overrides to a checked configuration. Hydra composes here, and does nothing else."""

import difflib
import functools
import gc
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra import compose, version

# initialize_config_module, the public way in, takes no second folder.
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from harness.schema.arguments import ARGUMENTS, Arguments, to_arguments
from harness.schema.case import AXES, PROBE
from harness.schema.config import BenchmarkConfig, to_config
from harness.schema.launcher import KINDS
from harness.schema.parameters import kind_of, shown
from harness.schema.refusal import RefusedError
from harness.schema.text import literal
from launch.flags import check_given_once
from launch.targets import checked_options

LISTS = (*AXES, PROBE)
GROUPS = (*LISTS, "experiment", "launch")
MOST_JOBS = 10_000
"""Largest number of runs of one multirun."""


@dataclass
class _Composed(BenchmarkConfig, Arguments):
    """Keys that Hydra composes: an experiment, and an override, may also give arguments."""


ConfigStore.instance().store(name="benchmark", node=_Composed)


@dataclass(frozen=True)
class Request:
    """Configuration and arguments of a command."""

    config: BenchmarkConfig
    arguments: Arguments


def compose_config(
    overrides: Sequence[str], *, config_dir: str | None = None, nproc_per_node: int | None = None
) -> BenchmarkConfig:
    """The configuration that `overrides` ask for. Raises RefusedError with a message for the user.

    config_dir: a folder with options of the user's own. nproc_per_node: what stands where the overrides are silent.
    """
    return compose_request(overrides, {}, config_dir=config_dir, nproc_per_node=nproc_per_node).config


def compose_request(
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    *,
    config_dir: str | None = None,
    nproc_per_node: int | None = None,
) -> Request:
    """Return configuration and arguments; `flags` holds the arguments that stand on the command line as --flags."""
    with _without_collection():
        return _composed(overrides, flags, config_dir, nproc_per_node)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Turn off garbage collection: it takes an eighth of the time of composing, and finds little."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _composed(
    overrides: Sequence[str], flags: Mapping[str, Any], config_dir: str | None, nproc_per_node: int | None
) -> Request:
    check_given_once(overrides, flags)
    with _hydra(config_dir):
        for override in _parse(overrides):
            _check_key(override)
            _check_options(override)
        composed = _compose(overrides)
        _drop_parameters_of_unselected(composed, overrides)
        resolved = _resolved(composed)
    given = {name: resolved.pop(name) for name in ARGUMENTS if name in resolved}
    node = typed(BenchmarkConfig, resolved)
    node.config_dir = str(Path(config_dir).absolute()) if config_dir else None
    if node.torchrun.nproc_per_node is None:
        node.torchrun.nproc_per_node = nproc_per_node
    config = with_options(to_config(node))
    return Request(config, arguments_of(given | dict(flags), config))


def arguments_of(given: Mapping[str, Any], config: BenchmarkConfig) -> Arguments:
    """Return the arguments, checked beside the configuration. Raises RefusedError."""
    arguments = to_arguments(typed(Arguments, given))
    try:
        arguments.check_environment(config.env)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    return arguments


def with_options(config: BenchmarkConfig) -> BenchmarkConfig:
    """Return the configuration with its options checked, as the ranks will find them. Raises RefusedError."""
    own = [config.config_dir] if config.config_dir else []
    return checked_options(config, [*own, str(Path.cwd())])


def split_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a multirun: every combination of the values that `key=a,b` lists. Raises RefusedError."""
    listed, jobs = list[list[str]](), 1
    for override in _parse(overrides):
        listed.append(list(islice(_values(override), MOST_JOBS + 1)))
        jobs *= len(listed[-1])
        if jobs > MOST_JOBS:
            raise RefusedError(
                f"{override.input_line}: makes more than {MOST_JOBS} runs; accepted: at most {MOST_JOBS}; try a shorter list"
            )
    return [list(job) for job in product(*listed)]


def available_options(config_dir: str | None = None) -> dict[str, list[str]]:
    """Every axis, and `experiment`, with the options that can be selected."""
    with _hydra(config_dir):
        return {group: _options(group) for group in GROUPS}


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[None]:
    if config_dir is not None and not Path(config_dir).is_dir():
        raise RefusedError(f"--config-dir {config_dir}: no such folder")
    search_path = create_config_search_path(_shipped())
    if config_dir is not None:
        search_path.prepend(provider="--config-dir", path=f"file://{Path(config_dir).absolute()}", anchor="schema")
    version.setbase("1.3")
    GlobalHydra.instance().clear()
    _options.cache_clear()
    Hydra.create_main_hydra2(task_name="reducebench", config_search_path=search_path)
    try:
        yield
    finally:
        GlobalHydra.instance().clear()


def _shipped() -> str:
    """Return where conf/ is: in the installed package, or beside it in a checkout that is not installed."""
    return "pkg://harness.conf" if find_spec("harness.conf") else f"file://{Path(__file__).parent.parent / 'conf'}"


def _compose(overrides: Sequence[str]) -> DictConfig:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            composed = compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise RefusedError(explain(error)) from error
    OmegaConf.set_struct(composed, True)
    return composed


def _drop_parameters_of_unselected(composed: DictConfig, overrides: Sequence[str]) -> None:
    """An experiment may set parameters of an option that the command line then leaves out: they are left out with it."""
    asked = [override.lstrip("+") for override in overrides]
    for group in LISTS:
        for option, node in list(composed[group].items()):
            if not isinstance(node, DictConfig) or "_target_" in node or option not in _options(group):
                continue
            key = f"{group}.{option}"
            if any(text.startswith((f"{key}.", f"{key}=")) for text in asked):
                raise RefusedError(_explain_missing(key))
            with open_dict(composed):
                del composed[group][option]


def _parse(overrides: Sequence[str]) -> list[Override]:
    for text in overrides:
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that are not UTF-8
            raise RefusedError(f"{text!r}: is not UTF-8; accepted: key=value in UTF-8")
    try:
        parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise RefusedError(f"cannot read the overrides: {_first_line(error)}; they have the form key=value") from error
    return parsed


def _values(override: Override) -> Iterator[str]:
    if not override.is_sweep_override():
        yield override.input_line or ""
        return
    try:
        for value in override.sweep_string_iterator():
            yield f"{override.get_key_element()}={value}"
    except HydraException as error:
        raise RefusedError(
            f"{override.input_line}: {_first_line(error)}; a sweep takes a list of values, or range()"
        ) from error


@functools.cache
def _options(group: str) -> list[str]:
    """Options of a group in the folders of this Hydra, which takes 10 ms to list them."""
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def _check_key(override: Override) -> None:
    """Raise RefusedError for overrides that Hydra accepts but that have no effect here, or that delete a required key."""
    key, line = override.get_key_element().lstrip("+~"), override.input_line
    first, last = re.split(r"[./@:]", key)[0], key.rpartition(".")[2]
    if not all(re.split(r"[./@:]", key)):  # Hydra asserts that there are none
        raise RefusedError(f"{line}: has no key, or one with an empty part; accepted: key=value")
    if first == "hydra":
        raise RefusedError(f"{line}: Hydra composes the configuration, and does nothing else; accepted: keys of --help")
    if key == "config_dir":
        raise RefusedError(f"{line}: a folder that Hydra would not look in; try --config-dir FOLDER")
    if override.is_delete() and key in set(declared_keys()) - {*GROUPS, "env", "drift.optimizers"}:
        raise RefusedError(f"{line}: every run has {key}; accepted: {key}=VALUE; try to leave it out, for its default")
    if override.is_delete() and last == "_target_":
        option = key.rpartition(".")[0]
        raise RefusedError(f"{line}: {option} would be no option any more; try ~{option} to leave it out")
    if not override.is_delete() and not override.is_sweep_override():
        check_typed(key, override.value())


def check_typed(key: str, value: Any) -> None:
    """Raise RefusedError for a value that OmegaConf would convert to another one: -1 to true, true to 1."""
    if isinstance(value, dict):
        for name, item in value.items():
            check_typed(f"{key}.{name}", item)
        return
    kinds = _KINDS.get(key, ())
    if bool in kinds and not (value in (0, 1) or isinstance(value, str)):
        raise RefusedError(f"{key}={shown(value)}: {kind_of(value)}; accepted: true or false")
    if isinstance(value, bool) and kinds and bool not in kinds and str not in kinds:
        raise RefusedError(f"{key}={shown(value)}: true or false; accepted: a number")


def _check_options(override: Override) -> None:
    """Hydra names the options that exist only outside a list, and lets an option stand twice in one."""
    group = override.key_or_group
    if override.is_sweep_override():
        key, values = override.get_key_element(), (override.input_line or "").partition("=")[2]
        raise RefusedError(
            f"{override.input_line}: a list is written {key}=[{values}]; to sweep over the values, add --multirun"
        )
    if group not in GROUPS or override.is_delete():
        return
    value = override.value()
    if group in LISTS and (value is None or isinstance(value, dict)):
        raise RefusedError(f"{override.input_line}: expected a list of options, as in {group}=[NAME]; {_existing(group)}")
    selected = [str(option) for option in value] if isinstance(value, list) else [str(value)]
    _check_selected(group, selected if group in LISTS else [option for option in selected if option != "None"])


def _check_selected(group: str, selected: list[str]) -> None:
    options = _options(group)
    for option in selected:
        if option not in options:
            raise RefusedError(f"{group}={option}: no such option{_meant(option, options)}; {_existing(group)}")
    twice = sorted({option for option in selected if selected.count(option) > 1})
    if twice:
        raise RefusedError(f"{group}: {twice[0]} is selected twice")


def _existing(group: str) -> str:
    return f"the options of {group} are: {', '.join(_options(group))}"


def explain(error: Exception) -> str:
    """Message of Hydra or OmegaConf in terms of this configuration."""
    # Hydra wraps OmegaConf's error; OmegaConf wraps its own, without a key, under a debugger and with OC_CAUSE=1
    known = (one for one in (error, error.__cause__) if isinstance(one, OmegaConfBaseException) and one.full_key)
    cause = next(known, None)
    if cause is None or not (key := cause.full_key):
        return _first_line(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        return _explain_missing(key)
    return f"{key}: {_first_line(cause)}"


def _explain_missing(key: str) -> str:
    axis, _, rest = key.partition(".")
    option, _, parameter = rest.partition(".")
    if axis in LISTS and option:
        if GlobalHydra.instance().is_initialized() and option not in _options(axis):
            meant = _meant(option, _options(axis))
            return f"{key}: {axis} has no option {option}{meant}; accepted: {axis}.OPTION.PARAMETER=VALUE; {_existing(axis)}"
        if parameter:
            return f"{key}: {option} has no parameter {parameter}"
        return f"{key}: {option} is not selected; select it with {axis}=[{option},...] or drop its parameters"
    if axis == "launch" and rest:
        return f"{key}: {_launch_key(key)}"
    if axis == "env" and rest:
        return f"{key}: a new environment variable is added with +{key}=VALUE"
    return f"{key}: no such key of the configuration{_meant(key, declared_keys())}"


def _launch_key(key: str) -> str:
    """Each way of starting the ranks has keys of its own."""
    known = {kind: [f"launch.{field.name}" for field in fields(config)] for kind, config in KINDS.items()}
    having = [kind for kind, keys in known.items() if key in keys]
    if having:
        return f"it belongs to launch={' or launch='.join(having)}"
    return f"no way of starting the ranks has it{_meant(key, [key for keys in known.values() for key in keys])}"


def declared_keys() -> list[str]:
    """Every key of the configuration, but for those of options and launchers."""
    return list(_keys(_Composed))


def _keys(config: type[Any], prefix: str = "") -> Iterator[str]:
    for field in fields(config):
        yield prefix + field.name
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield from _keys(field.type, f"{prefix}{field.name}.")


def _kinds(config: type[Any], prefix: str = "") -> Iterator[tuple[str, tuple[type, ...]]]:
    """Every key with the types that its values may have."""
    for name, hint in get_type_hints(config).items():
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _kinds(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


_KINDS = dict(_kinds(_Composed))


def _check_mappings(resolved: Any) -> None:
    """Raise RefusedError for a value in the place of several keys."""
    for field in fields(_Composed):
        value = resolved.get(field.name, {})
        mapping = (isinstance(field.type, type) and is_dataclass(field.type)) or field.name in (*LISTS, "env", "launch")
        if mapping and not isinstance(value, dict):
            raise RefusedError(
                f"{field.name}={shown(value)}: {kind_of(value)}; accepted: a mapping; try {field.name}.KEY=VALUE"
            )


def _resolved(composed: DictConfig) -> dict[str, Any]:
    """Return the composed configuration with its interpolations resolved. Raises RefusedError."""
    try:
        resolved = OmegaConf.to_container(composed, resolve=True)
    except RecursionError as error:
        raise RefusedError("an interpolation ${...} refers to itself; accepted: one that leads to a value") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise RefusedError(explain(error)) from error
    assert isinstance(resolved, dict)
    _check_mappings(resolved)
    return {str(name): value for name, value in resolved.items()}


def typed(kind: type[Any], values: Mapping[str, Any]) -> DictConfig:
    """Return the values, each of its key's type. Raises RefusedError."""
    try:
        node = OmegaConf.merge(OmegaConf.structured(kind), literal(dict(values)))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise RefusedError(explain(error)) from error
    assert isinstance(node, DictConfig)
    return node


def _meant(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
