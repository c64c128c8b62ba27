"""Refusals for what a host lacks, before a rank is started."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.schema.rank_state import check_proc
from harness.schema.refusal import RefusedError
from tests.needs import needs, refused
from tests.running import ENDED_S, ENVIRONMENT, ROOT, launch

NO_PROC = ("unshare", "--mount", "sh", "-c", 'umount --lazy /proc && exec "$@"', "sh")
NO_NETWORK = ("unshare", "--net")


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (NO_PROC, "/proc is not mounted on "),
        (NO_NETWORK, "has no network: 127.0.0.1, where the ranks of one host meet: Network is unreachable"),
    ],
)
def test_what_a_host_lacks(without: tuple[str, ...], words: str, tmp_path: Path) -> None:
    needs(refused(*without, "true"))
    asked = ("experiment=smoke", "torchrun.nproc_per_node=2", f"results_dir={tmp_path / 'results'}")
    command = [*without, sys.executable, "-m", "launch", *asked]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=ENDED_S, check=False)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "results").exists()


def test_a_host_without_proc_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="/proc is not mounted on "):
        check_proc(tmp_path)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").touch()
    check_proc(tmp_path)


@pytest.mark.full
def test_a_taken_port_on_one_host(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        asked = ("experiment=smoke", "torchrun.nproc_per_node=2", f"launch.master_port={port}", f"results_dir={tmp_path}")
        done = launch(*asked)
    assert done.returncode == 1
    assert "torchrun left with status 1; ranks/torchrun.log ends: " in done.stderr
    assert f"launch.master_port={port}: another process listens there; try another port, or 0 for a free one" in done.stderr
    assert "within rendezvous_s" not in done.stderr
