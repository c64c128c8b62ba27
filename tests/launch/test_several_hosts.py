"""Several hosts: real namespaces with a cable between them, a real sshd, and a real Slurm."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.report.frame import Run, load_run
from tests.conftest import Measure
from tests.hosts import MISSING as NO_HOSTS
from tests.hosts import Hosts, two_hosts, with_ssh
from tests.needs import needs
from tests.running import BEGUN_S, ENDED_S, ENVIRONMENT, HANG_S, ORPHANS_S, ROOT, launch, processes_of, start_launch, wait_until
from tests.slurm import MISSING as NO_SLURM
from tests.slurm import under_slurm

SMALL = ("experiment=smoke", "reduction=[sum,mean]")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    needs(NO_HOSTS)
    (tmp_path / "hosts").mkdir()
    with two_hosts(tmp_path / "hosts", f"t{os.getpid() % 10000}") as pair:
        yield pair


@pytest.fixture(scope="module")
def one_host(measure: Measure) -> Run:
    """The same run in one process group of this host, without processes of its own."""
    return measure(*SMALL)


def same(one: Run, other: Run) -> None:
    assert one.discrepancies.equals(other.discrepancies), "bit for bit"
    assert (one.cases.gradient_sha256 == other.cases.gradient_sha256).all()


def test_two_hosts_find_what_one_finds(hosts: Hosts, one_host: Run, tmp_path: Path) -> None:
    done = launch(*SMALL, *hosts.overrides(), f"results_dir={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "results" / "smoke" / "latest")
    assert [rank["host"] for rank in run.environment["ranks"]] == list(hosts.names)
    same(run, one_host)


@pytest.mark.full
def test_over_ssh(hosts: Hosts, one_host: Run, tmp_path: Path) -> None:
    with with_ssh(hosts, tmp_path / "hosts") as overrides:
        done = _launched_on_the_first(hosts, *SMALL, *overrides, f"results_dir={tmp_path / 'results'}")
    assert done.returncode == 0, done.stderr
    same(load_run(tmp_path / "results" / "smoke" / "latest"), one_host)
    assert wait_until(lambda: not processes_of(tmp_path / "results"), ORPHANS_S)


def _typed(*overrides: str) -> str:
    quoted = " ".join(f"'{override}'" for override in overrides)
    return f"cd {ROOT} && {sys.executable} -m launch {quoted}"


def _launched_on_the_first(hosts: Hosts, *overrides: str) -> "subprocess.CompletedProcess[str]":
    """`python -m launch`, typed there, to its end."""
    command = [str(hosts.enter), hosts.names[0], _typed(*overrides)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.mark.full
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_a_person_starts_the_other_host(hosts: Hosts, one_host: Run, tmp_path: Path, rendezvous: str) -> None:
    nodes = [override for override in hosts.overrides() if not override.startswith(("launch.hosts", "launch.ssh"))]
    overrides = [*SMALL, *nodes, "torchrun.nnodes=2", f"launch.rendezvous={rendezvous}", f"results_dir={tmp_path / 'results'}"]
    begun = [str(hosts.enter), hosts.names[0], _typed(*overrides)]
    with subprocess.Popen(begun, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        other = next(line for line in iter(first.stdout.readline, "") if line.startswith("node 1"))
        command = first.stdout.readline().removeprefix("$ ").strip()
        second = subprocess.run([str(hosts.enter), hosts.names[1], command], env=ENVIRONMENT, timeout=HANG_S, check=False)
        first.communicate(timeout=HANG_S)
    assert (other.strip(), first.returncode, second.returncode) == ("node 1, on another host:", 0, 0)
    same(load_run(tmp_path / "results" / "smoke" / "latest"), one_host)


@pytest.mark.full
def test_ctrl_c_ends_both_hosts(hosts: Hosts, tmp_path: Path) -> None:
    results = tmp_path / "results"
    process = start_launch("workload=[mlp_digits]", "iterations=500", *hosts.overrides(), f"results_dir={results}")
    try:
        assert wait_until(lambda: bool(list(results.glob("default/*/cases/*.parquet"))), BEGUN_S)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=ENDED_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "ended by SIGINT" in output
    assert wait_until(lambda: not processes_of(results), ORPHANS_S), processes_of(results)


@pytest.mark.full
def test_a_host_that_never_comes_is_named(hosts: Hosts, tmp_path: Path) -> None:
    nodes = [override for override in hosts.overrides() if not override.startswith(("launch.hosts", "launch.ssh"))]
    few = ("torchrun.nnodes=2", "rendezvous_s=1")
    done = _launched_on_the_first(hosts, *SMALL, *nodes, *few, f"results_dir={tmp_path / 'results'}")
    assert done.returncode == 1
    assert "node 1 never came within rendezvous_s=1" in done.stderr
    assert "node 0 never" not in done.stderr


def test_slurm(one_host: Run, tmp_path: Path) -> None:
    needs(NO_SLURM)
    asked = (*SMALL, "launch=slurm", "torchrun.nnodes=2", "torchrun.nproc_per_node=1", f"results_dir={tmp_path / 'results'}")
    done = under_slurm(tmp_path / "cluster", [sys.executable, "-m", "launch", *asked], timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert "submitted as job 1" in done.stdout
    assert done.stdout.rstrip().endswith("report.md")
    same(load_run(tmp_path / "results" / "smoke" / "latest"), one_host)
    assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S), processes_of(tmp_path)
