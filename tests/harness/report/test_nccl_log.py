"""NCCL's log: every version's lines, hostile content, and what the report makes of them."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.report import nccl_log
from harness.report.collectives import collective_tables, collectives
from harness.report.frame import load_run
from harness.report.nccl import nccl_tables
from harness.report.nccl_log import choice_of
from harness.report.render import build
from harness.schema.run_dir import RunDir
from tests.harness.report.test_collectives import run as swept  # noqa: F401
from tests.synthetic import make_run, steps

PREFIX = "vm:721:721 [0] NCCL INFO "
CHOICES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "2.21.5, and 2.20 to 2.22": (
        "20000 Bytes -> Algo 1 proto 0 time 12.345678",
        ("", 20000, True, "RING", "LL", None, None),
    ),
    "2.23.4": (
        "ReduceScatter: 20000 Bytes -> Algo 6 proto 2 time 12.345678",
        ("ReduceScatter", 20000, True, "PAT", "SIMPLE", None, None),
    ),
    "2.27.7, and 2.24 to 2.30": (
        "AllReduce: 4194304 Bytes -> Algo NVLS_TREE proto SIMPLE channel{Lo..Hi}={0..15}",
        ("AllReduce", 4194304, True, "NVLS_TREE", "SIMPLE", 0, 15),
    ),
    "2.28.9, one share": (
        "AllGather: 20000 Bytes -> Algo RING proto LL128 channel{Lo..Hi}={0..2}",
        ("AllGather", 20000, False, "RING", "LL128", 0, 2),
    ),
    "2.32.3": (
        "AllReduce: 20000 Bytes -> Algo RING proto LL channel{Lo..Hi}={0..1} cgaClusterSize 4",
        ("AllReduce", 20000, True, "RING", "LL", 0, 1),
    ),
    "RCCL": (
        "AllReduce: 4 Bytes -> Algo TREE proto LL channel{Lo..Hi}={3..3} comm 0x55a7a339db50",
        ("AllReduce", 4, True, "TREE", "LL", 3, 3),
    ),
    "2.27.3, symmetric memory": (
        "AllReduce [Symmetric]: 4096 Bytes -> Kernel AllReduce_RSxLDMC_AGxSTMC nchannels 8 nthreads 512",
        ("AllReduce", 4096, True, "SYMMETRIC", "AllReduce_RSxLDMC_AGxSTMC", 0, 7),
    ),
    "2.28.9, symmetric memory": (
        "ReduceScatter [Symmetric]: 4096 Bytes -> Kernel ReduceScatter_LD nchannels 4 nthreads 512 nWorks 1",
        ("ReduceScatter", 4096, False, "SYMMETRIC", "ReduceScatter_LD", 0, 3),
    ),
    "2.29.7, copy engines": (
        "AllGather [Copy Engine]: 1024 Bytes -> cudaMemcpy; CE synchronization with NVLS",
        ("AllGather", 1024, False, "COPY_ENGINE", "cudaMemcpy", None, None),
    ),
    "2.32.3, copy engines over several nodes": (
        "AllGather [Hierarchical CE]: 1024 Bytes -> Rail ring RMA proxy + CE",
        ("AllGather", 1024, False, "HIERARCHICAL_CE", "Rail ring RMA proxy + CE", None, None),
    ),
}
"""Lines as the sources of each version print them; that of 2.32.3 was seen."""
LOG = f"""{PREFIX}NCCL version 2.32.3+cuda13.4
{PREFIX}comm 0xc01ad00 rank 0 nRanks 2 nNodes 1 localRanks 2 localRank 0 MNNVL 0
{PREFIX}NCCL_ALGO set by environment to Ring
{PREFIX}Channel 00/0 : 0[0] -> 1[0] via P2P/CUMEM
{PREFIX}Channel 01/0 : 0[0] -> 1[0] via P2P/CUMEM
{PREFIX}Using network Socket
{PREFIX}64 coll channels, 64 collnet channels, 0 nvls channels, 64 p2p channels, 2 p2p channels per peer
{PREFIX}NVLS multicast support is not available on dev 0 (NVLS_NCHANNELS 0)
{PREFIX}Best tuning, algorithm, RING, protocol, LL
{PREFIX}AllReduce: 3000000 Bytes -> Algo RING proto SIMPLE channel{{Lo..Hi}}={{0..7}} cgaClusterSize 4
{PREFIX}AllReduce: 3000000 Bytes -> Algo RING proto SIMPLE channel{{Lo..Hi}}={{0..7}} cgaClusterSize 4
{PREFIX}AllGather: 1500000 Bytes -> Algo RING proto LL channel{{Lo..Hi}}={{0..1}} cgaClusterSize 4
"""


def write_log(run_dir: RunDir, text: str, process: str = "721") -> Path:
    path = run_dir.ranks.path / f"nccl.launch0.vm.{process}.log"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    overrides = ("workload=[mlp_digits]", "reduction=[mean]", "nccl_debug=true")
    return make_run(tmp_path_factory.mktemp("made"), steps(0.01), *overrides)


@pytest.fixture
def run_dir(made: RunDir) -> Iterator[RunDir]:
    """A run without a log; the environment is that of gloo."""
    before = made.environment()
    yield made
    made.write_environment(before)
    for log in made.ranks.nccl_logs():
        log.unlink()


def environment(run_dir: RunDir, **values: Any) -> None:
    run_dir.write_environment({**run_dir.environment(), "backend": "nccl", "device": "cuda", **values})


@pytest.mark.parametrize("version", CHOICES)
def test_the_lines_of_every_version_are_read(version: str) -> None:
    line, expected = CHOICES[version]
    assert choice_of(PREFIX + line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Best tuning, algorithm, RING, protocol, LL",
        "AllReduce: many Bytes -> Algo RING proto LL",
        "9" * 40 + " Bytes -> Algo 1",
    ],
)
def test_other_lines_are_no_choice(line: str) -> None:
    assert choice_of(PREFIX + line) is None


def test_a_number_beyond_the_known_algorithms_stays_a_number() -> None:
    assert choice_of("8 Bytes -> Algo 9 proto 3 time 1.0") == ("", 8, True, "9", "3", None, None)


def test_choices_are_counted_and_shown(run_dir: RunDir) -> None:
    environment(run_dir)
    write_log(run_dir, LOG)
    write_log(run_dir, f"{PREFIX}comm 0x1 rank 1 nRanks 2 nNodes 1 localRanks 2 localRank 1 MNNVL 0\n", "722")
    chosen, facts = nccl_tables(load_run(run_dir.path))
    assert chosen.rows.to_numpy().tolist() == [
        ["AllReduce", "3000000", "RING", "SIMPLE", "0..7", "2"],
        ["AllGather", "3000000", "RING", "LL", "0..1", "1"],
    ]
    logged = dict(zip(facts.rows["what"], facts.rows.logged, strict=True))
    assert logged["version"] == "2.32.3+cuda13.4"
    assert logged["transport"] == "P2P/CUMEM (2 times)"
    assert logged["ranks and nodes"] == "2 nNodes 1 (2 times)"
    assert logged["NVLS multicast"] == "not available"
    assert logged["variable"] == "NCCL_ALGO set by environment to Ring"
    assert "without a choice" not in logged
    assert "incomplete" not in logged
    assert "NCCL's choices" in [table.title for table in build(run_dir.path).tables]


def test_choices_stand_beside_the_sizes_of_the_sweep(swept: Any) -> None:  # noqa: F811
    write_log(RunDir(swept.path), LOG.replace("nRanks 2", "nRanks 4"))
    run = load_run(swept.path)
    tables = {table.title: table.rows for table in collective_tables(collectives(run), run.nccl, brief=True)}
    assert tables["Collective: all_reduce, float32"]["NCCL chose"].tolist() == ["RING SIMPLE x8"]
    assert tables["Collective: all_gather, float32"]["NCCL chose"].tolist() == [""], "6 MB are not 3 MB"
    assert "NCCL chose" not in next(iter(collective_tables(collectives(run), brief=True))).rows


def test_a_share_of_an_unknown_number_of_ranks_stays_a_share(run_dir: RunDir) -> None:
    environment(run_dir)
    unnamed = f"{PREFIX}{CHOICES['2.21.5, and 2.20 to 2.22'][0]}\n"
    write_log(run_dir, f"{PREFIX}AllGather: 20 Bytes -> Algo RING proto LL channel{{Lo..Hi}}={{0..0}}\n" + 2 * unnamed)
    assert next(iter(nccl_tables(load_run(run_dir.path)))).rows.to_numpy().tolist() == [
        ["not logged", "20000", "RING", "LL", "not logged", "2"],
        ["AllGather", "20 a rank", "RING", "LL", "0..0", "1"],
    ]


WITHOUT: dict[str, tuple[dict[str, Any], str]] = {
    "the backend is gloo": ({"backend": "gloo"}, ""),
    "NCCL_DEBUG=WARN was set": ({"environment_variables": {"NCCL_DEBUG": "WARN"}}, LOG),
    "NCCL_DEBUG_SUBSYS=INIT,COLL was set": ({"environment_variables": {"NCCL_DEBUG_SUBSYS": "INIT,COLL"}}, LOG),
    "NCCL_DEBUG_SUBSYS=^TUNING was set": ({"environment_variables": {"NCCL_DEBUG_SUBSYS": "^TUNING"}}, LOG),
    "NCCL_DEBUG_FILE=/dev/null was set": ({"environment_variables": {"NCCL_DEBUG_FILE": "/dev/null"}}, ""),
    "one rank": ({"world_size": 1}, LOG),
    "NCCL has logged nothing": ({}, ""),
    "NCCL 2.18.6+cuda12.1 has logged no choice": ({}, LOG.replace("2.32.3+cuda13.4", "2.18.6+cuda12.1")),
    "NCCL_DEBUG_SUBSYS=tuning has": ({"environment_variables": {"NCCL_DEBUG_SUBSYS": "tuning", "NCCL_DEBUG": "info"}}, ""),
}


@pytest.mark.parametrize("reason", list(WITHOUT)[:-1])
def test_a_log_without_a_choice_has_a_reason(reason: str, run_dir: RunDir) -> None:
    facts, text = WITHOUT[reason]
    environment(run_dir, **facts)
    if text:
        write_log(run_dir, "".join(line for line in text.splitlines(keepends=True) if "Bytes ->" not in line))
    log = load_run(run_dir.path).nccl
    assert log is not None
    assert reason in log.reason


def test_variables_that_ask_for_the_choices_are_no_reason(run_dir: RunDir) -> None:
    environment(run_dir, **WITHOUT["NCCL_DEBUG_SUBSYS=tuning has"][0])
    log = load_run(run_dir.path).nccl
    assert log is not None
    assert log.reason == "NCCL has logged nothing"


def test_a_run_that_was_not_asked_has_no_section(run_dir: RunDir, tmp_path: Path) -> None:
    run = load_run(shutil.copytree(run_dir.path, tmp_path / "copy"))
    run = replace(run, config=replace(run.config, nccl_debug=False))
    assert run.nccl is None
    assert list(nccl_tables(run)) == []


def test_logs_are_read_at_the_first_use(run_dir: RunDir) -> None:
    environment(run_dir)
    run = load_run(run_dir.path)
    write_log(run_dir, LOG)
    assert run.nccl is not None
    assert len(run.nccl.choices) == 2


def test_the_logs_of_a_run_have_one_limit_of_bytes(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three logs, and bytes for one and a half: the second is read in part, and the third not at all."""
    environment(run_dir)
    for process in ("721", "722", "723"):
        write_log(run_dir, LOG, process)
    monkeypatch.setattr(nccl_log, "_MOST_IN_ALL", len(LOG) * 3 // 2)
    log = load_run(run_dir.path).nccl
    assert log is not None
    assert log.facts["version"] == {"2.32.3+cuda13.4": 2}
    assert log.choices.calls.tolist() == [2, 1]
    assert f"nccl.launch0.vm.722.log: only the first {len(LOG) // 2} bytes are read; 1 of 3 files are not read" in log.reason


def test_the_logs_of_a_run_have_one_limit_of_choices(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(run_dir)
    for process, size in (("721", 8), ("722", 16)):
        write_log(run_dir, f"{PREFIX}AllReduce: {size} Bytes -> Algo RING proto LL channel{{Lo..Hi}}={{0..0}}\n" * 2, process)
    monkeypatch.setattr(nccl_log, "_MOST_ROWS", 1)
    log = load_run(run_dir.path).nccl
    assert log is not None
    assert log.choices[["bytes", "calls"]].to_numpy().tolist() == [[8, 2]]
    assert log.reason == "2 calls are left out: the limit is 1 different choices"


@pytest.mark.parametrize(("size", "message"), [(10**17 + 1, 2 * 10**17 + 2), (10**18 - 1, 2 * 10**18 - 2)])
def test_large_numbers_keep_all_digits_beside_an_unknown_one(size: int, message: int, run_dir: RunDir) -> None:
    environment(run_dir)
    gathered = "AllGather: {} Bytes -> Algo RING proto LL channel{{Lo..Hi}}={{0..0}}\n"
    write_log(run_dir, f"{PREFIX}comm 0x1 rank 0 nRanks 2 nNodes 1\n{PREFIX}{gathered.format(size)}")
    write_log(run_dir, f"{PREFIX}{gathered.format(7)}", "722")
    log = load_run(run_dir.path).nccl
    assert log is not None
    assert log.choices["bytes"].tolist() == [7, size]
    assert log.choices.message_bytes.dropna().tolist() == [message]


def test_many_damaged_logs_have_a_short_reason(run_dir: RunDir) -> None:
    environment(run_dir)
    for process in range(9):
        (run_dir.ranks.path / f"nccl.launch0.vm.{process}.log").symlink_to(run_dir.path / "config.yaml")
    log = load_run(run_dir.path).nccl
    assert log is not None
    assert log.reason.count("not a regular file") == 5
    assert log.reason.endswith("4 files more are read in part or not at all")


def test_hostile_logs_harm_nothing(run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_log, "_MOST_BYTES", 2**21)
    environment(run_dir)
    secret = tmp_path / "secret"
    secret.write_text(f"{PREFIX}AllReduce: 77 Bytes -> Algo RING proto LL\n")
    (run_dir.ranks.path / "nccl.launch0.link.log").symlink_to(secret)
    os.mkfifo(run_dir.ranks.path / "nccl.launch0.fifo.log")
    absurd = f"AllGather: {'9' * 18} Bytes -> Algo RING proto LL channel{{Lo..Hi}}={{0..1}}"
    write_log(run_dir, f"{PREFIX}comm 0x1 rank 0 nRanks {'9' * 9} nNodes 1\n{PREFIX}{absurd}\n", "absurd")
    text = "\x1b[2J\u202e<script>NCCL WARN \x1b]0;owned\x07<b>\n" + "AllReduce: " * 100_000 + "\n" + "\0" * 5000 + "\n"
    write_log(run_dir, text + LOG + f"{PREFIX}NCCL version 2.0\x1b[31m(evil)\n")
    huge = write_log(run_dir, LOG, "722")
    os.truncate(huge, 2**40)
    report = build(run_dir.path)
    assert not report.failed
    chosen, facts = nccl_tables(report.run)
    assert chosen.rows.calls.tolist() == ["4", "2", "1"]
    assert chosen.rows["bytes"].tolist()[-1] == f"{'9' * 18} a rank"
    assert "77" not in chosen.markdown()
    why = dict(zip(facts.rows["what"], facts.rows.logged, strict=True))["incomplete"]
    assert "nccl.launch0.link.log: not a regular file" in why
    assert "nccl.launch0.vm.722.log: only the first" in why
    for page in (chosen.markdown(), facts.markdown()):
        assert "\x1b" not in page
        assert "<script>" not in page
        assert "<b>" not in page
