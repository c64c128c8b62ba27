"""What a host's files tell, on trees of such files; who is busy, on real processes; and what a run writes down of both."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.rank.environment import neighbours
from harness.rank.environment.files import cpu_list, spell_cpus
from harness.rank.environment.host import Host
from harness.rank.environment.masking import MASK, mask_text, mask_variable
from harness.rank.environment.neighbours import Look, Process, between, look
from harness.rank.environment.versions import versions
from harness.report.frame import load_run
from tests.running import ENVIRONMENT, HANG_S, ROOT

BUSY = "while True: pass"


def tree(root: Path, files: dict[str, str]) -> Host:
    """A host that shows these files and no others."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return Host(root)


@pytest.fixture
def busy() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that takes all the time that it gets, and is no child of a rank."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    yield process
    process.kill()
    process.wait()


def test_a_host_that_tells_nothing_is_none_everywhere(tmp_path: Path) -> None:
    host = Host(tmp_path)
    facts = host.facts()
    assert [facts[key] for key in ("boot_id", "memory_bytes", "turbo", "max_mhz", "cpu_quota", "load_average")] == [None] * 6
    assert facts["governors"] == facts["numa"] == {}
    assert (host.mhz(), host.throttles(), host.throttled_by_quota(), host.numa_of_pci("0000:17:00.0")) == (None,) * 4


def test_what_a_server_tells(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    host = tree(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave",
            f"{cpu}/cpu1/cpufreq/scaling_governor": "powersave",
            f"{cpu}/cpu2/cpufreq/scaling_governor": "performance",
            f"{cpu}/cpu2/cpufreq/scaling_cur_freq": "2450000",
            f"{cpu}/cpu0/cpufreq/cpuinfo_max_freq": "3700000",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3",
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "4",
            f"{cpu}/intel_pstate/no_turbo": "1",
            "sys/devices/system/node/node0/cpulist": "0-1,8",
            "sys/devices/system/node/node10/cpulist": "2-3",
            "sys/bus/pci/devices/0000:17:00.0/numa_node": "10",
            "sys/bus/pci/devices/0000:18:00.0/numa_node": "-1",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: First: of two\nprocessor\t: 1\nmodel name\t: Second",
            "proc/meminfo": "MemTotal:       16 kB\nMemFree: 1 kB",
            "proc/loadavg": "1.50 0.75 0.25 2/300 999",
            "proc/self/stat": f"7 (a ) b) {' '.join(str(field) for field in range(3, 39))} 2 40",
        },
    )
    facts = host.facts()
    assert facts["governors"] == {"powersave": 2, "performance": 1}
    assert facts["turbo"] is False
    assert facts["max_mhz"] == 3700
    assert facts["numa"] == {"0": "0-1,8", "10": "2-3"}
    assert facts["cpu"] == "First: of two"
    assert facts["memory_bytes"] == 16 * 1024
    assert facts["load_average"] == [1.5, 0.75, 0.25]
    assert host.mhz() == 2450
    assert host.throttles() == 7
    assert host.numa_of({2, 8}) == [0, 10]
    assert [host.numa_of_pci(address) for address in ("0000:17:00.0", "0000:18:00.0")] == [10, None]


def test_the_least_quota_of_all_groups_counts(tmp_path: Path) -> None:
    """Version 2 of control groups: a group's own limit, and that of the group above it."""
    host = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000",
            "sys/fs/cgroup/pod/cpu.stat": "usage_usec 5\nnr_throttled 12",
        },
    )
    assert host.quota() == 1.5
    assert host.throttled_by_quota() == 12


@pytest.mark.parametrize(("quota", "cores"), [("250000", 2.5), ("-1", None)])
def test_a_quota_of_the_first_version(tmp_path: Path, quota: str, cores: float | None) -> None:
    """The path is the host's, as a container sees it, and is not there inside of it."""
    folder = "sys/fs/cgroup/cpu,cpuacct"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    assert tree(tmp_path, {"proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/x", **files}).quota() == cores


def test_lists_of_cpus_as_the_kernel_spells_them() -> None:
    assert cpu_list("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert cpu_list(None) == cpu_list("") == set()
    assert spell_cpus({11, 10, 0, 1, 2, 3, 8}) == "0-3,8,10-11"


def test_time_is_told_apart_by_process() -> None:
    """A pid that was taken over counts from its new start; own processes are no neighbours; idle ones are not named."""
    before = Look(0.0, {1: Process("gone", 5, 9.0), 2: Process("rank", 5, 1.0), 3: Process("idle", 5, 7.0)}, 10.0, 1.0)
    now = {1: Process("new", 50, 4.0), 2: Process("rank", 5, 6.0), 3: Process("idle", 5, 7.05)}
    seen = between(before, Look(10.0, now, 21.0, 1.5), own={2})
    assert seen == {
        "window_s": 10.0,
        "busy_s": 11.0,
        "stolen_s": 0.5,
        "own_s": 5.0,
        "others": [{"pid": 1, "name": "new", "cpu_s": 4.0}],
    }


def test_the_run_is_what_came_from_the_parent_of_a_rank() -> None:
    """The parent is a shell here. All that it has started belongs to the run, and its own parent does not."""
    script = 'sleep 900 & sh -c "sleep 900 & wait" & "$@"; kill 0'
    code = """
import os, psutil
from harness.rank.environment.neighbours import family
parent, own = psutil.Process().parent(), set()
while len(own) < 5:
    own = family(None)
names = sorted(psutil.Process(pid).name() for pid in own - {os.getpid()})
print(*names, os.getpid() in own, parent.pid in own, parent.ppid() in own, family(7) - own)
"""
    shell = ["sh", "-c", script, "sh", sys.executable, "-c", code]
    done = subprocess.run(
        shell, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_S, check=False, start_new_session=True
    )
    assert done.stdout.split() == ["sh", "sh", "sleep", "sleep", "True", "True", "False", "{7}"], done.stderr


def test_a_real_busy_process_is_seen(busy: "subprocess.Popen[bytes]") -> None:
    began = time.monotonic()
    first = look()
    time.sleep(0.5)
    seen = between(first, look(), own={os.getpid()})
    took = time.monotonic() - began
    named = {process["pid"]: process for process in seen["others"]}
    assert named[busy.pid]["name"] == Path(f"/proc/{busy.pid}/comm").read_text().strip()
    assert 0 < named[busy.pid]["cpu_s"] <= took + 2 / os.sysconf("SC_CLK_TCK")
    assert seen["busy_s"] >= named[busy.pid]["cpu_s"] - 0.1


def test_without_proc_nobody_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path / "none"))
    nothing = neighbours.look()
    assert between(nothing, nothing, own=set()) | {"window_s": 0} == {
        "window_s": 0,
        "busy_s": None,
        "stolen_s": None,
        "own_s": 0,
        "others": [],
    }


SECRETS = {
    "+env.HF_TOKEN=hf_x1": f"+env.HF_TOKEN={MASK}",
    "++env.AWS_SECRET_ACCESS_KEY='a b'": f"++env.AWS_SECRET_ACCESS_KEY={MASK}",
    "env={WANDB_API_KEY: x1, NCCL_ALGO: Ring}": f"env={{WANDB_API_KEY:{MASK}",
    "+env.MY_TOKEN=a,b": f"+env.MY_TOKEN={MASK}",
    r'+env.MY_TOKEN="a\"b c"': f"+env.MY_TOKEN={MASK}",
    "+env.my_pass=x1": f"+env.my_pass={MASK}",
    "+env.PGPASS=x1": f"+env.PGPASS={MASK}",
    "+env.HTTPS_PROXY=http://me:x1@proxy:3128": f"+env.HTTPS_PROXY=http://{MASK}@proxy:3128",
    "+env.HTTPS_PROXY=http://me:p@ss@proxy:3128": f"+env.HTTPS_PROXY=http://{MASK}@proxy:3128",
    "config_dir=https://ghp_x@host/a": f"config_dir=https://{MASK}@host/a",
}
PLAIN = (
    "+env.NCCL_ALGO=Ring",
    "workload.text.tokens=128",
    "launch.master_port=29500",
    "results_dir=/TOKENS/x",
    "http://host:80/a@b",
)


@pytest.mark.parametrize("word", [*SECRETS, *PLAIN])
def test_a_command_line_is_written_down_without_secrets(word: str) -> None:
    assert mask_text(word) == SECRETS.get(word, word)


def test_a_variable_of_a_secret_s_name_is_written_down_without_its_value() -> None:
    assert mask_variable("NCCL_NET_AUTH_TOKEN", "x1") == MASK
    assert mask_variable("TORCH_HOME", "https://me:x1@host") == f"https://{MASK}@host"
    assert mask_variable("NCCL_SOCKET_IFNAME", "lo") == "lo"


def test_a_run_names_its_busy_neighbour_and_no_secret_and_leaves_no_temporary_file(
    busy: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    asked = ["experiment=smoke", "workload=[mlp_digits]", f"results_dir={tmp_path}", "+env.HF_TOKEN=sesame"]
    command = [sys.executable, "-m", "launch", *asked]
    settings = {"NCCL_DEBUG": "WARN", "MY_TOKEN": "sesame", "AWS_SECRET_ACCESS_KEY": "sesame", "NCCL_NET_TOKEN": "sesame"}
    settings["TMPDIR"] = str(temporary)
    done = subprocess.run(
        command, cwd=ROOT, env={**ENVIRONMENT, **settings}, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "smoke" / "latest")
    environment = run.environment
    (conditions,) = environment["conditions"]
    (host,) = conditions["hosts"]
    assert busy.pid in {process["pid"] for process in host["others"]}
    assert not {rank["pid"] for rank in environment["ranks"]} & {process["pid"] for process in host["others"]}
    assert host["own_s"] > 0
    assert len(conditions["ranks"]) == len(environment["ranks"]) == 2
    assert environment["environment_variables"]["NCCL_DEBUG"] == "WARN"
    assert environment["environment_variables"]["NCCL_NET_TOKEN"] == MASK
    assert f"+env.HF_TOKEN={MASK}" in environment["argv"]
    assert "sesame" not in (run.path / "environment.json").read_text()
    assert list(temporary.iterdir()) == []
    assert f"(pid {host['others'][0]['pid']}, " in next(line for line in done.stdout.splitlines() if line.startswith("(!) On "))


def test_the_version_of_nccl_is_that_of_the_library_in_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with LD_PRELOAD on an H200: torch said 2.28.9, the version that it was built with, where 2.32.3 was loaded."""

    def answer(number: "ctypes._CArgObject | Any") -> int:
        number._obj.value = 23203
        return 0

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 28, 9))
    monkeypatch.setattr("harness.rank.environment.versions._MAPS", tmp_path / "maps")
    assert versions()["nccl"] == "2.28.9", "nothing says more"
    (tmp_path / "maps").write_text("7f0-7f1 r-xp 0 08:01 7 /opt/libc.so.6\n7f2-7f3 r-xp 0 08:01 9 /opt/libnccl.so.2\n")
    monkeypatch.setattr("ctypes.CDLL", lambda path: SimpleNamespace(ncclGetVersion=answer, path=path))
    assert versions()["nccl"] == "2.32.3"
