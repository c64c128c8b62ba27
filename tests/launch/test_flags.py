"""Arguments of the command: as flags, as key=value, and in an experiment."""

from pathlib import Path

import pytest

from harness.schema.arguments import Arguments
from harness.schema.refusal import RefusedError
from launch.__main__ import main, parse
from launch.compose import compose_request
from launch.flags import flags_of
from launch.resume import configure_resume
from tests.synthetic import make_run, steps

ONE = ("workload=[mlp_digits]", "reduction=[mean]", "device=cpu", "torchrun.nproc_per_node=2")


def asked(*line: str) -> Arguments:
    parsed = parse(line)
    return compose_request(parsed.overrides, flags_of(parsed), config_dir=parsed.config_dir).arguments


def test_flags_and_keys_ask_for_the_same() -> None:
    flags = ["--dry-run", "--accept-changes", "--accept-owner", "--world-sizes", "1,2"]
    keys = ["dry_run=true", "++accept_changes=true", "accept_owner=1", "world_sizes=[1,2]"]
    expected = Arguments(dry_run=True, accept_changes=True, accept_owner=True, world_sizes=[1, 2])
    assert asked(*ONE, *flags) == asked(*ONE, *keys) == expected
    assert flags_of(parse(["--world-sizes=[1,2]", "--resume", "a b=c"])) == {"world_sizes": [1, 2], "resume": "a b=c"}
    assert flags_of(parse([])) == {}


def test_a_flag_overrides_an_experiment() -> None:
    assert asked("experiment=single_vs_multi", "--world-sizes", "1,2").world_sizes == [1, 2]


REFUSED = {
    "--dry-run dry_run=true": "dry_run=true and --dry-run: given twice; accepted: one of them; try --dry-run alone",
    "--world-sizes 1,x": "--world-sizes 1,x: not a list of whole numbers; accepted: as --world-sizes 1,2,4",
    "--world-sizes 2,2": "world_sizes=[2, 2]: expected different numbers of ranks, each at least 1",
    "world_sizes=[[1]]": "world_sizes=[1]: holds a list",
    "dry_run=-1": "dry_run=-1: is a whole number; accepted: true or false",
    "dry_run=maybe": "dry_run: ",
    "dry_rum=true": "dry_rum: no such key of the configuration; did you mean dry_run?",
    "--resume a --multirun": "--resume: continues one run as it was configured; accepted: neither --multirun",
    "--resume a --base --new": "--resume: continues one run, and an A/B run starts two",
    "--resume a resume=b": "resume=b and --resume: given twice",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refusals(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ONE, *line.split()]) == 2
    told = capsys.readouterr().err
    assert told.count("reducebench: ") == 1
    assert REFUSED[line] in told


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("flags"), steps(0.01), *ONE[:2]).path


def test_a_dry_run_of_each_size_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ONE, f"results_dir={tmp_path}", "--world-sizes", "1,2", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would run 1 case:") == 2
    assert not list(tmp_path.iterdir())


def test_a_resume_by_flags_and_by_keys(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["--resume", str(run), "--dry-run"], [f"resume={run}", "dry_run=true"]):
        assert main(line) == 0
        assert capsys.readouterr().out.startswith("nothing to do: all 1 cases and probes")
    going = configure_resume(["deadline_s=60", "restarts=0"], {"resume": str(run)})
    assert (going.config.deadline_s, going.config.restarts) == (60.0, 0)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["until.seconds=3"],
            "until.seconds=3: not the value that the run began with; accepted: that value; try --accept-changes",
        ),
        (["name=other"], "name=other: not the value that the run began with"),
        (["world_sizes=[1,2]"], "world_sizes: makes several runs, and --resume continues one"),
        (["accept_changes=-1"], "accept_changes=-1: is a whole number; accepted: true or false"),
    ],
)
def test_a_resume_takes_new_values_of_conduct_alone(run: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RefusedError) as refused:
        configure_resume(overrides, {"resume": str(run)})
    assert said in str(refused.value)
