"""launch=slurm without a Slurm: its script, and how a job is followed, against programs that answer as Slurm's do.

A real one runs in test_several_hosts.py.
"""

import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import Slurm
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch import slurm
from launch.compose import compose_config
from launch.task import Task

ODD = ["with spaces", "it's", 'say "so"', "50%j", "$HOME `id`; #x", "\N{SNOWMAN} \\ back"]
FULL = {
    "partition": "gpu",
    "account": "team-7",
    "time": "00:30:00",
    "gpus_per_node": 4,
    "cpus_per_task": 12,
    "extra_lines": ["module load cuda", "#SBATCH --constraint=ib", "export A='b c'", "#SBATCH --exclusive"],
    "python": "/opt/my env/bin/python",
}


def configured(**launch: object) -> BenchmarkConfig:
    config = compose_config(["experiment=smoke", "launch=slurm", "torchrun.nnodes=2", "torchrun.nproc_per_node=4"])
    return replace(config, launch={**config.launch, **launch})


def script(run_dir: str = "/results/run", **launch: object) -> str:
    return slurm.script(configured(**launch), RunDir(Path(run_dir)), Task(retry=True))


def sbatch_options(text: str) -> dict[str, str]:
    """What sbatch reads: its lines up to the first command, each split as a shell would."""
    head = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            break
        head += shlex.split(line.removeprefix("#SBATCH")) if line.startswith("#SBATCH") else []
    return dict(option.removeprefix("--").partition("=")[::2] for option in head)


def accepted(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def test_all_that_can_be_asked_for_is_asked_of_sbatch() -> None:
    options = sbatch_options(script(**FULL))
    assert options == {
        "job-name": "reducebench-smoke",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "12",
        "gpus-per-node": "4",
        "partition": "gpu",
        "account": "team-7",
        "time": "00:30:00",
        "output": str(RunDir(Path("/results/run")).ranks.log("slurm")),
        "open-mode": "append",
        "constraint": "ib",
        "exclusive": "",
    }


def test_what_is_not_asked_for_is_left_to_slurm() -> None:
    options = sbatch_options(script())
    assert not {"partition", "account", "time", "gpus-per-node"} & set(options)
    assert options["cpus-per-task"] == "4", "a thread for each of the node's ranks"


def test_sbatch_s_lines_stand_before_the_first_command_and_the_shell_s_after_them() -> None:
    lines = script(**FULL).splitlines()
    assert lines[0] == "#!/bin/bash"
    last = max(place for place, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])
    assert lines[last + 1 : last + 3] == ["module load cuda", "export A='b c'"]
    assert lines[-1].startswith("exec ")


def test_bash_accepts_it() -> None:
    assert accepted(script(**FULL))
    assert accepted(script(container=["apptainer", "exec", "--bind", "/my data", "image.sif"]))


def test_the_job_s_own_process_has_the_nodes_interpreter() -> None:
    words = shlex.split(script(python="/opt/my env/bin/python").splitlines()[-1])
    assert words[:5] == ["exec", "/opt/my env/bin/python", "-m", "launch.batch", "/results/run"]
    assert words[5:] == list(Task(retry=True).arguments)


def test_the_job_s_own_process_runs_outside_of_the_container() -> None:
    """launch.batch puts the container before the ranks' command on each node."""
    words = shlex.split(script(container=["apptainer", "exec", "image.sif"]).splitlines()[-1])
    assert words[2:4] == ["-m", "launch.batch"]
    assert "apptainer" not in words


@pytest.mark.parametrize("name", ODD)
def test_an_odd_run_directory_comes_through_whole(name: str, tmp_path: Path) -> None:
    text = script(str(tmp_path / name), python=_printing(tmp_path))
    assert accepted(text)
    output = sbatch_options(text)["output"].replace("%%", "\0")
    assert "%" not in output, "sbatch would put a job's number there"
    assert output.replace("\0", "%") == str(RunDir(tmp_path / name).ranks.log("slurm"))
    done = subprocess.run(["bash"], input=text, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[2] == str(tmp_path / name)


def _printing(folder: Path) -> str:
    """An interpreter that prints its arguments, one a line."""
    return _program(folder, "printing", 'printf "%s\\n" "$@"')


def _program(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


class Cluster:
    """Programs named as Slurm's, found first; each notes how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        folder.mkdir()
        self.calls.touch()
        self.becomes("RUNNING")
        self.answers("scancel", "")

    def answers(self, program: str, body: str) -> None:
        _program(self.folder, program, f'echo "{program} $*" >> {shlex.quote(str(self.calls))}\n{body}')

    def becomes(self, state: str) -> None:
        self.answers("scontrol", f"echo 'JobId=7 JobName=x JobState={state} Reason=None'")

    def called(self, program: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if line.startswith(program)]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path / "programs")
    monkeypatch.setenv("PATH", str(made.folder), prepend=":")
    return made


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETED", "OUT_OF_MEMORY", "NODE_FAIL"])
def test_a_job_s_state_is_the_controller_s(cluster: Cluster, state: str) -> None:
    cluster.becomes(state)
    assert slurm.job_state("7") == state
    assert "7" in cluster.called("scontrol")[0].split()


def test_a_job_that_the_controller_has_forgotten_is_no_controller_that_is_away(cluster: Cluster) -> None:
    cluster.answers("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert slurm.job_state("7") == "FORGOTTEN"
    cluster.answers("scontrol", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert slurm.job_state("7") == "UNKNOWN"


def test_without_slurm_the_state_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.job_state("7") == "UNKNOWN"


def follow(watch: Callable[[], None], received: list[str]) -> str:
    return slurm.follow("7", Slurm(poll_s=0.02), watch, received)


class Looks:
    """A watch that does something at each look, the last one for ever; whoever looks too often hangs."""

    def __init__(self, *deeds: Callable[[], object]) -> None:
        self.deeds, self.number = deeds, 0

    def __call__(self) -> None:
        self.deeds[min(self.number, len(self.deeds) - 1)]()
        self.number += 1
        assert self.number < 1000


def nothing() -> None:
    """A look at which nothing happens."""


def test_a_job_is_watched_to_its_end_state(cluster: Cluster) -> None:
    looks = Looks(nothing, lambda: cluster.becomes("COMPLETED"))
    assert follow(looks, []) == "COMPLETED"
    assert looks.number >= 2
    assert not cluster.called("scancel")


@pytest.mark.parametrize("state", ["FAILED", "TIMEOUT", "CANCELLED", "BOOT_FAIL", "PREEMPTED"])
def test_every_end_is_an_end(cluster: Cluster, state: str) -> None:
    cluster.becomes(state)
    assert follow(nothing, []) == state


@pytest.mark.parametrize("state", ["PENDING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED"])
def test_what_lives_on_is_waited_for(cluster: Cluster, state: str) -> None:
    cluster.becomes(state)
    assert follow(Looks(nothing, nothing, lambda: cluster.becomes("COMPLETED")), []) == "COMPLETED"


def test_a_controller_that_is_away_for_a_moment_is_waited_for(cluster: Cluster) -> None:
    cluster.answers("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert follow(Looks(nothing, lambda: cluster.becomes("FAILED")), []) == "FAILED"


def test_the_first_signal_cancels_once_and_the_end_is_waited_for(cluster: Cluster) -> None:
    received = list[str]()
    looks = Looks(lambda: received.append("SIGINT"), nothing, nothing, lambda: cluster.becomes("CANCELLED"))
    assert follow(looks, received) == "CANCELLED"
    assert cluster.called("scancel") == ["scancel 7"]


def test_the_second_signal_leaves_the_job_to_itself(cluster: Cluster) -> None:
    received = list[str]()
    looks = Looks(lambda: received.append("SIGINT"), lambda: received.append("SIGINT"), nothing)
    assert follow(looks, received) == "RUNNING"
    assert cluster.called("scancel") == ["scancel 7"]


def test_a_submitted_job_has_the_number_that_sbatch_says(cluster: Cluster, tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "a run")
    cluster.answers("sbatch", "echo '41;east'")
    assert slurm.submit(run_dir) == "41"
    assert cluster.called("sbatch") == [f"sbatch --parsable {run_dir.batch_script}"]


def test_what_sbatch_refuses_is_refused_in_its_words(cluster: Cluster, tmp_path: Path) -> None:
    cluster.answers("sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1")
    with pytest.raises(RefusedError, match="invalid partition specified: nope"):
        slurm.submit(RunDir(tmp_path))


def test_a_port_that_is_none_is_refused_with_what_0_means_in_a_job() -> None:
    with pytest.raises(ValueError, match=r"from 1 to 65535, or 0 for 29400 and the last three digits of the job's number$"):
        Slurm(master_port=70000)
