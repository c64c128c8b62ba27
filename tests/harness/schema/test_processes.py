"""Processes of this machine: those that live, that have ended, that are stopped, and later ones of the same pid."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.schema.processes import find, is_alive, is_stopped, name_of, still_lives
from tests.launch.standins import gone_pid
from tests.needs import needs, refused
from tests.running import ENVIRONMENT, HANG_S, ROOT

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose program has a longer name than the kernel keeps."""
    sleep = shutil.which("sleep")
    assert sleep
    program = tmp_path / "sleeps-and-has-a-long-name"
    program.symlink_to(sleep)
    with subprocess.Popen([program, "900"]) as process:
        yield process
        process.kill()


def test_a_process_lives_until_it_ends_although_nobody_has_waited_for_it(sleeper: "subprocess.Popen[bytes]") -> None:
    found = find(sleeper.pid)
    assert is_alive(sleeper.pid) and still_lives(found)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert psutil.pid_exists(sleeper.pid), "a zombie"
    assert not is_alive(sleeper.pid) and not still_lives(found)


def test_a_stopped_process_lives(sleeper: "subprocess.Popen[bytes]") -> None:
    assert not is_stopped(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
    assert is_stopped(sleeper.pid) and is_alive(sleeper.pid)


@pytest.mark.parametrize("pid", [-5, 4194305, 2**70])
def test_a_pid_that_no_process_can_have_is_of_none(pid: int) -> None:
    """As in a state file that is damaged."""
    assert not (is_alive(pid) or is_stopped(pid) or still_lives(find(pid)))


def test_a_process_that_was_waited_for_is_gone() -> None:
    pid = gone_pid()
    assert not (is_alive(pid) or is_stopped(pid))


def test_a_name_is_the_kernel_s_and_not_longer(sleeper: "subprocess.Popen[bytes]") -> None:
    process = psutil.Process(sleeper.pid)
    assert name_of(process) == Path(f"/proc/{sleeper.pid}/comm").read_text().strip()


REUSED = """
import os, subprocess, time
from pathlib import Path
from harness.rank.environment.neighbours import family
from harness.schema.processes import find, is_alive, still_lives

first = subprocess.Popen(["sleep", "900"])
found = find(first.pid)
print(os.getppid(), family(None) == {os.getpid(), first.pid}, still_lives(found))
first.kill()
first.wait()
time.sleep(0.05)  # the kernel counts starts in hundredths of a second
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
second = subprocess.Popen(["sleep", "900"])
print(second.pid == first.pid, is_alive(first.pid), still_lives(found))
second.kill()
"""


def test_a_later_process_of_the_same_pid_is_another_one() -> None:
    """In a pid namespace of its own, where the first process has no parent that it can see."""
    needs(refused(*NAMESPACE, "true"))
    command = [*NAMESPACE, sys.executable, "-c", REUSED]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.stdout.split() == ["0", "True", "True", "True", "True", "False"], done.stderr
