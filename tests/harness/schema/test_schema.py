"""Cases, run directories and rank states."""

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from harness.schema.case import Case, ParameterName
from harness.schema.config import BenchmarkConfig, dump_config, load_config
from harness.schema.matrix import expand_cases
from harness.schema.rank_state import RankState, RankStatus, read_rank_status
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.seeding import derive_seed
from harness.schema.sweep import variants
from harness.schema.whole_files import writing
from launch.compose import compose_config

NOW = datetime.datetime(2026, 11, 20, 12, 0, 0)


def config(*overrides: str) -> BenchmarkConfig:
    return compose_config(overrides, nproc_per_node=2)


def test_cases_are_every_combination_and_reductions_of_a_setting_stand_together() -> None:
    cases = expand_cases(config("workload=[mlp_digits,cnn_digits]", "reduction=[sum,mean]", "sync=[none,barrier]"))
    assert len(cases) == 8 == len({case.case_id for case in cases})
    assert [case.setting for case in cases[::2]] == [case.setting for case in cases[1::2]]
    assert len({case.setting for case in cases}) == 4


def test_a_sweepable_parameter_makes_a_case_of_each_value() -> None:
    swept = config("workload=[mlp_digits]", "reduction=[micro_batch]", "reduction.micro_batch.size=[2,8]")
    cases = expand_cases(swept)
    assert [dict(case.parameters)["reduction.micro_batch.size"] for case in cases] == [2, 8]
    assert [case.nodes["reduction"]["size"] for case in cases] == [2, 8]
    assert cases[0].setting == cases[1].setting
    assert cases[0].case_id != cases[1].case_id


def test_two_swept_parameters_make_every_combination() -> None:
    node = {"_sweepable_": ["size", "rate", "seed"], "size": [2, 8], "rate": [0.1, 0.2], "seed": 7}
    made = [(option, values["size"], values["rate"], values["seed"]) for option, values in variants({"one": node})]
    assert made == [("one", 2, 0.1, 7), ("one", 2, 0.2, 7), ("one", 8, 0.1, 7), ("one", 8, 0.2, 7)]


PINNED = {
    (
        "reduction=[micro_batch]",
        "reduction.micro_batch.size=[2,8]",
        "aggregation=[bucketed]",
        "aggregation.bucketed.bytes=[64K,1M]",
    ): [
        f"mlp_digits.micro_batch.global_mean.even.bucketed.none.fp32-{digest}"
        for digest in ("d6748280", "e11e7ad1", "ae697581", "ffee8707")
    ],
    ("reduction=[sum]",): ["mlp_digits.sum.global_mean.even.all_reduce.none.fp32-84e45fbc"],
    ("reduction=[sum]", "fault=[alias]", "communication=[fp32]", "clip=[by_norm]"): [
        "mlp_digits.sum.global_mean.even.all_reduce.none.fp32.fault=alias.communication=fp32.clip=by_norm-b093e09f"
    ],
}
"""Command lines to the case_ids that version 0.2, with schema_version 4, gave them."""


@pytest.mark.parametrize("line", PINNED, ids=lambda line: line[0])
def test_case_ids_stay_what_they_were(line: tuple[str, ...]) -> None:
    assert [case.case_id for case in expand_cases(config("workload=[mlp_digits]", *line))] == PINNED[line]


def test_a_parameter_has_one_name_and_its_inverse() -> None:
    case = expand_cases(config("workload=[mlp_digits]", "reduction=[micro_batch]", "aggregation=[bucketed]"))[0]
    nested = replace(case, nodes={**case.nodes, "workload": {"_target_": "a.B", "model": {"_target_": "c.D", "width": 3}}})
    assert nested.parameters == (
        ("aggregation.bucketed.bytes", 1048576),
        ("reduction.micro_batch.size", 4),
        ("workload.mlp_digits.model._target_", "c.D"),
        ("workload.mlp_digits.model.width", 3),
    )
    names = [ParameterName.parse(name) for name, _ in nested.parameters]
    assert [str(name) for name in names] == [name for name, _ in nested.parameters]
    assert names[3] == ("workload", "mlp_digits", "model.width") and names[3].label == "workload.model.width"
    assert {text: ParameterName.parse(text) for text in ("aggregation", "aggregation.bytes", "torchrun.a.b", "launch")} == (
        dict.fromkeys(("aggregation", "aggregation.bytes", "torchrun.a.b", "launch"))
    )


def test_cases_are_equal_where_they_ask_for_the_same() -> None:
    lines = ("workload=[mlp_digits]", "reduction=[micro_batch]", "reduction.micro_batch.size=[2,8]")
    ones, others = expand_cases(config(*lines)), expand_cases(config(*lines, "iterations=3"))
    assert ones == others and {case: place for place, case in enumerate(ones)}[others[1]] == 1
    assert ones[0] != ones[1] != ones[1].case_id and ones[0].setting == ones[1].setting
    values = [replace(ones[0], nodes={"sync": {"value": value}}) for value in (1, True, "1", 1.0, None)]
    assert len({*values}) == len({case.case_id for case in values}) == 5, "each is a case of its own"


def test_case_ids_are_file_names_and_depend_on_what_is_asked_alone() -> None:
    one = expand_cases(config("workload=[mlp_digits]", "reduction=[sum]"))[0]
    other = expand_cases(config("workload=[mlp_digits]", "reduction=[mean,sum]", "iterations=3", "seed=7"))[1]
    assert one.case_id == other.case_id
    assert one.case_id.startswith("mlp_digits.sum.global_mean.even.all_reduce.none.fp32-")
    unusual = expand_cases(config("workload=[mlp_digits]", "reduction=[sum]", "communication=[fp32]", "fault=[alias]"))[0]
    assert unusual.case_id.startswith("mlp_digits.sum.global_mean.even.all_reduce.none.fp32.fault=alias.communication=fp32-")
    nested = Case(*"abcdefg", nodes={"workload": {"model": {"_target_": "../../etc/passwd"}}})
    assert "/" not in nested.case_id


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    before = config("experiment=smoke", "+env.NCCL_ALGO=Ring", "name=täst".replace("ä", "a"))
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(before))
    assert load_config(path) == before
    path.write_text("- no\n- mapping")
    with pytest.raises(RefusedError):
        load_config(path)


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    asked = config(f"results_dir={tmp_path}")
    names = [RunDir.create(asked, NOW).path.name for _ in range(3)]
    assert names == ["2026-11-20_12-00-00", "2026-11-20_12-00-00_2", "2026-11-20_12-00-00_3"]
    assert (tmp_path / "default" / "latest").resolve().name == names[-1]


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with pytest.raises(KeyboardInterrupt), writing(path, tmp_path) as part:
        part.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_no_run_directory(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not a run directory"):
        RunDir.open(tmp_path)


def test_a_run_of_another_schema_version_is_refused(tmp_path: Path) -> None:
    run_dir = RunDir.create(config(f"results_dir={tmp_path}"), NOW)
    run_dir.write_environment({"schema_version": 1})
    with pytest.raises(RefusedError, match="is of schema_version 1, and this version reads 4"):
        RunDir.open(run_dir.path)


def test_a_rank_state_is_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "0.state"
    state = RankState(path, RankStatus(rank=0, pid=7, host="here"))
    state.enter("aggregate")
    state.update(case="a.b", done=3)
    state.enter("aggregate")
    read = read_rank_status(path)
    assert read is not None
    assert list(read.reached) == ["aggregate"]
    assert read == RankStatus(0, 7, "here", case="a.b", done=3, phase="aggregate", reached=read.reached)
    state.update(ended="error", words="ü" * 10_000)
    status = read_rank_status(path)
    assert status is not None
    assert (status.ended, status.phase) == ("error", "aggregate")
    assert 100 < len(status.words) < 10_000
    path.write_bytes(b"foreign")
    assert read_rank_status(path) is None
    assert read_rank_status(tmp_path / "none") is None


def test_seeds_depend_on_their_purpose() -> None:
    seeds = {derive_seed(seed, *purpose) for seed in (0, 1) for purpose in (("a", "b"), ("ab",), ("b", "a"), ())}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
