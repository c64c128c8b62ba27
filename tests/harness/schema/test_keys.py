"""Every key says what it affects, and everything that asks for it reads the declaration."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.report.across import remarks
from harness.report.frame import Run, load_run
from harness.report.nccl_matrix import _remarks as matrix_remarks
from harness.report.sides import Side, differences
from harness.schema.arguments import ARGUMENTS, Arguments
from harness.schema.config import BenchmarkConfig, dump_config, figures_digest, load_config, values_affecting
from harness.schema.environment import ENVIRONMENT, OfConfiguration, OfOneRun, machine_facts, without_noise
from harness.schema.keys import config_key, declared, keys_of
from harness.schema.launcher import KINDS
from tests import keys_page
from tests.synthetic import make_run, steps

OTHER: dict[str, Any] = {
    "device": "cpu",
    "backend": "gloo",
    "order": "shuffled",
    "story": "gradient_sums",
    "config_dir": "elsewhere",
    "env": {"A": "b"},
    "drift.optimizers": {"sgd": 1.0},
    "until.relative": 0.1,
    "launch": {"kind": "torchrun", "master_port": 29500},
    "torchrun.nproc_per_node": 4,
    "probe": {"averaging": {}},
}
"""Other values of keys; a number, a text or a switch needs none."""
KEYS = [each for each in keys_of(BenchmarkConfig) if each.affects != "selection" or each.help or each.name == "probe"]


def test_the_page_of_keys_is_up_to_date() -> None:
    """The golden listing: what each key affects, for a reader to check."""
    assert keys_page.PAGE.read_text() == keys_page.page(), "run python -m tests.keys_page, and read what has changed"


def test_a_key_that_does_not_say_what_it_affects_fails_at_import() -> None:
    @dataclass
    class Silent:
        pace: int = field(default=1)

    @dataclass
    class Wrong:
        pace: int = config_key(1, affects="nothing", help="")  # type: ignore[arg-type]

    for kind in (Silent, Wrong):
        with pytest.raises(TypeError, match=r"pace: does not say what it affects; accepted: config_key"):
            declared(kind)


def test_every_key_has_help_and_no_argument_is_a_key_of_the_configuration() -> None:
    launchers = [each for kind in KINDS.values() for each in keys_of(kind)]
    assert all(each.help for each in (*KEYS, *launchers, *keys_of(Arguments)) if each.name != "probe")
    assert not set(ARGUMENTS) & {each.name for each in fields(BenchmarkConfig)}


def changed(config: BenchmarkConfig, name: str) -> BenchmarkConfig:
    """The configuration with another value of one key."""
    value = values_affecting(config, "results", "times", "conduct", "location", "selection")[name]
    near = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}x"
    other = OTHER.get(name, near)
    outer, _, inner = name.partition(".")
    return replace(config, **{outer: replace(getattr(config, outer), **{inner: other}) if inner else other})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    asked = ("workload=[mlp_digits]", "reduction=[mean]")
    return load_run(make_run(tmp_path_factory.mktemp("keys"), steps(0.01), *asked).path)


@pytest.mark.parametrize("each", KEYS, ids=lambda each: each.name)
def test_two_runs_that_differ_in_one_key(each: Any, run: Run) -> None:
    """A comparison, the report of several sizes, and the digest agree on what the key affects."""
    other = replace(run, config=changed(run.config, each.name))
    counts = each.affects in ("results", "times")
    found = each.name in run.environment  # what came of the key, as device=auto, is compared instead of the key
    warned = [line for line in remarks([run, other]) if "differ" in line]
    named = counts and not found and not each.name.startswith("torchrun.")
    assert warned == ([f"The runs differ in more than their ranks: {each.name}."] if named else [])
    shown = set(differences(Side((run,)), Side((other,))).key)
    assert bool(shown) == (counts and not found)
    assert all(f"{key}.".startswith(f"{each.name}.") for key in shown)
    assert (figures_digest(run.config) != figures_digest(other.config)) == (each.affects not in ("conduct", "location"))


def test_the_case_of_issue_18(run: Run) -> None:
    """Two runs that differ in deadline_s and restarts alone, on other numbers of ranks."""
    ranks = replace(run.config.torchrun, nnodes=2)
    other = replace(run, config=replace(run.config, deadline_s=60.0, restarts=0, torchrun=ranks))
    assert not [line for line in remarks([run, other]) if "differ" in line]


def test_a_matrix_of_nccl_settings_names_what_else_differs(run: Run) -> None:
    ring = replace(run, config=replace(run.config, env={"NCCL_ALGO": "RING"}, deadline_s=60.0, name="other"))
    assert not [line for line in matrix_remarks([run, ring]) if "differ in more" in line]
    more = replace(ring, config=replace(ring.config, seed=1, env={"NCCL_ALGO": "RING", "OMP_PLACES": "cores"}))
    assert "(!) The runs differ in more than NCCL's settings: seed, env." in list(matrix_remarks([run, more]))


def test_arguments_are_not_written_and_those_of_an_older_run_are_ignored(run: Run, tmp_path: Path) -> None:
    text = dump_config(run.config)
    assert not set(ARGUMENTS) & set(yaml.safe_load(text))
    older = "accept_changes: true\naccept_owner: false\ndry_run: true\nresume: null\nworld_sizes: [1, 2]\n"
    (tmp_path / "config.yaml").write_text(f"{text}{older}nccl_matrix: {{algorithms: [RING], protocols: [], channels: []}}\n")
    assert load_config(tmp_path / "config.yaml") == run.config


NOISE = {
    "argv": ["python"],
    "schema_version": 5,
    "conditions": [{"launch": 0, "began": "now"}],
    "changed": [{"launch": 0, "lines": ["x"]}],
    "config_sha256": "abc",
    "hosts": [{"host": "here", "boot_id": "1", "load_average": [1.0]}],
    "ranks": [{"host": "here", "pid": 7}],
    "environment_variables": {"NCCL_ALGO": "RING", "SLURM_JOB_ID": "3"},
    "cores": 2,
}


def test_noise_of_one_run_is_no_fact_of_the_machine() -> None:
    facts = {
        "hosts": [{"host": "here"}],
        "ranks": [{"host": "here"}],
        "environment_variables": {"NCCL_ALGO": "RING"},
        "cores": 2,
    }
    assert machine_facts(NOISE) == facts
    assert without_noise(NOISE) == {"config_sha256": "abc", **facts}, "a resume also asks for the configuration"
    marked = {name for name, shape in ENVIRONMENT.keys.items() if isinstance(shape, OfOneRun | OfConfiguration)}
    assert marked == {"argv", "schema_version", "conditions", "changed", "config_sha256"}


def test_a_comparison_shows_no_noise(run: Run) -> None:
    noisy = [{**NOISE, "config_sha256": name, "ranks": [{"host": "here", "pid": name}]} for name in ("a", "b")]
    sides = [Side((replace(run, environment=each),)) for each in noisy]
    assert differences(*sides).empty
