"""Bad input: a clear message, status 2, no traceback, and nothing started."""

import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.__main__ import main
from launch.compose import compose_config
from launch.devices import visible_gpus
from launch.verdict import FAILURE, REFUSAL, Verdict
from tests.launch.standins import DONE, StandIn
from tests.needs import needs
from tests.worlds.pool import Pool

REFUSALS = {
    "reduction=[none,nosuch]": ["nosuch", "micro_batch", "one_by_one_forward"],
    "nvtx=true device=cpu": ["nvtx=true: device=cpu has no NVTX ranges", "accepted: device=cuda", "try profile=true"],
    "sample_hz=-1": ["sample_hz=-1: less than 0"],
    "reduction=nosuch": ["nosuch", "the options of reduction are"],
    "experiment=nosuch": ["nosuch", "smoke"],
    "reduction=[sums]": ["did you mean sum?"],
    "reduction=[]": ["reduction", "at least one"],
    "reduction=null": ["expected a list of options"],
    "reduction=[sum,sum]": ["sum is selected twice"],
    "reduction=[sum] reduction.micro_batch.size=4": ["micro_batch is not selected"],
    "reduction.micro_batch.sizes=4": ["micro_batch has no parameter sizes"],
    "iteration=3": ["iteration", "did you mean iterations?"],
    "torchrun.nproc_per_nod=3": ["did you mean torchrun.nproc_per_node?"],
    "+colour=red": ["colour", "no such key"],
    "launch.hosts=[a]": ["launch.hosts", "launch=torchrun_nodes"],
    "launch=slurm launch.partion=x": ["did you mean launch.partition?"],
    "iterations=many": ["iterations", "Integer"],
    "iterations=0": ["iterations=0", "at least 1"],
    "iterations=-3": ["iterations=-3"],
    "warm_up=-1": ["warm_up=-1"],
    "global_batch_size=0": ["global_batch_size=0"],
    "global_batch_size=1": ["smaller than the world size 2"],
    "threads_per_rank=0": ["threads_per_rank=0"],
    "torchrun.nproc_per_node=0": ["torchrun.nproc_per_node=0"],
    "torchrun.nnodes=0": ["torchrun.nnodes=0"],
    "deadline_s=0": ["deadline_s"],
    "deadline_s=nan": ["deadline_s"],
    "device=tpu": ["device", "auto, cpu, cuda"],
    "backend=mpi": ["backend", "auto, gloo, nccl"],
    "device=cpu backend=nccl": ["backend=nccl"],
    "name=../up": ["name"],
    "name=": ["name"],
    "env.NCCL_ALGO=Ring": ["+env.NCCL_ALGO"],
    "reduction=none,sum": ["--multirun"],
    "==": ["key=value"],
    "+=64M": ["has no key"],
    "drift.=3": ["key=value"],
    "reduction.mean._target_=harness.axes.reduction.mean.Mean": ["has no Mean"],
    "reduction.mean._target_=nosuch.module.Class": ["there is no module nosuch"],
    "reduction.mean._target_=Class": ["dotted name"],
    "results_dir=/proc/nosuch": ["results_dir=/proc/nosuch"],
    "--config-dir /nosuch": ["/nosuch"],
    "reduction.none=3": ["reduction.none=3"],
    "+reduction.mine=null": ["reduction.mine"],
    "reduction.micro_batch.size=[]": ["empty list"],
    "reduction.micro_batch.size=[8,8]": ["reduction.micro_batch.size: 8 is listed twice"],
    "--multirun iterations=interval(1,2)": ["iterations=interval(1,2)"],
    "--multirun workload=glob(*)": ["glob(*)"],
    "torchrun.nnodes=2 torchrun.nproc_per_node=2": ["launch=torchrun_nodes"],
    "seed=-1": ["seed=-1"],
    "resume=a\0b": ["null byte"],
    "probe=[nosuch]": ["probe=nosuch", "staleness"],
    "fault=[alias] fault.alias.rank=1": ["alias has no parameter rank"],
    "story=nosuch": ["story='nosuch'", "gradient_sums"],
    "drift.steps=-1": ["drift.steps=-1"],
    "drift.optimizers.foo=1": ["drift.optimizers.foo"],
    "drift.optimizers.sgd=0": ["drift.optimizers.sgd=0"],
    "reduction.micro_batch._sweepable_=3": ["reduction.micro_batch._sweepable_=3", "list of different names"],
    "reduction.micro_batch._sweepable_=[sizes]": ["sizes: no such parameter; accepted: size"],
    "~torchrun": ["~torchrun", "every run has torchrun"],
    "~torchrun.nnodes": ["every run has torchrun.nnodes"],
    "~workload.mlp_digits._target_": ["~workload.mlp_digits to leave it out"],
    "env=${seed}": ["env=0: is a whole number; accepted: a mapping"],
    "drift=${seed}": ["drift=0: is a whole number; accepted: a mapping"],
    "name=${name}": ["name: Recursive interpolation"],
    "seed=${nosuch}": ["nosuch"],
    "--multirun seed=range(1,1000000000)": ["seed=range(1,1000000000): makes more than 10000 runs"],
    "--multirun seed=range(1,200) iterations=range(1,200)": ["iterations=range(1,200): makes more than 10000 runs"],
    "profile=-1": ["profile=-1", "accepted: true or false"],
    "profile=1.0e-3": ["profile=0.001"],
    "iterations=true": ["iterations=true", "accepted: a number"],
    "torchrun={nnodes:true}": ["torchrun.nnodes=true"],
    "torchrun.nproc_per_node=1000000 global_batch_size=1000000": ["torchrun.nproc_per_node=1000000: more than 1024"],
    "launch=slurm launch.gpus_per_node=2000": ["torchrun.nproc_per_node=2000: more than 1024"],
    "launches=99999": ["launches=99999: more than 10000"],
    "results_dir=": ["results_dir=", "empty"],
    "hydra.run.dir=/tmp": ["hydra.run.dir=/tmp: Hydra composes"],
    "+hydra.x=1": ["Hydra composes"],
    "config_dir=/tmp": ["--config-dir FOLDER"],
    "workload.mlp_digits.hidden=[nan]": ["workload.mlp_digits.hidden=nan: not a number"],
    "experiment=reduction_modes workload=[cnn_digits] workload.mlp_digits.samples=32": ["mlp_digits is not selected"],
}


@pytest.mark.parametrize("line", REFUSALS)
def test_refused_before_a_rank_starts(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("reducebench: ")
    assert all(part in captured.err for part in REFUSALS[line]), captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_reads_like_a_message_is_not_taken_for_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["iterations='full_key: seed not in'", "dry_run=true"]) == 2
    assert capsys.readouterr().err == (
        "reducebench: iterations: Value 'full_key: seed not in' of type 'str' could not be converted to Integer\n"
    )


@pytest.mark.skipif(bool(list(Path("/dev").glob("nvidia[0-9]*"))), reason="there is a GPU")
@pytest.mark.parametrize("line", ["backend=nccl", "device=cuda"])
def test_nccl_needs_gpus(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([line, "torchrun.nproc_per_node=2"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_ranges_for_a_profiler_need_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for gpus, status in ((0, 2), (2, 0)):
        monkeypatch.setattr("launch.devices.visible_gpus", lambda variables, gpus=gpus: gpus)
        assert main(["nvtx=true", "torchrun.nproc_per_node=2", "dry_run=true"]) == status
    assert capsys.readouterr().err == (
        "reducebench: nvtx=true: this host shows no GPU; accepted: nvtx=true on a host with one; try profile=true\n"
    )


def test_more_ranks_than_gpus_with_nccl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("launch.devices.visible_gpus", lambda variables: 2)
    assert main(["backend=nccl", "torchrun.nproc_per_node=3", "dry_run=true"]) == 2
    assert "3: nccl takes one rank a GPU, and 2 are visible" in capsys.readouterr().err
    assert main(["torchrun.nproc_per_node=3", "dry_run=true"]) == 2, "auto is nccl where there are GPUs"
    assert main(["backend=nccl", "torchrun.nproc_per_node=2", "dry_run=true"]) == 0
    assert main(["backend=gloo", "device=cuda", "torchrun.nproc_per_node=3", "dry_run=true"]) == 0


def test_ranks_default_to_the_gpus_or_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for gpus, ranks in ((0, 2), (4, 4)):
        monkeypatch.setattr("launch.devices.visible_gpus", lambda variables, gpus=gpus: gpus)
        assert main(["dry_run=true"]) == 0
        assert f"--nproc-per-node={ranks} " in capsys.readouterr().out


def test_an_unwritable_results_dir(tmp_path: Path) -> None:
    """Root writes everywhere but on a read-only mount."""
    mount = f"mount -t tmpfs -o ro none {tmp_path} && exec python -m launch results_dir={tmp_path}/results"
    path = f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}"  # type: ignore[attr-defined] # noqa: PTH120
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        needs(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 2
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


RANKS_REFUSE = {
    "workload=[mlp_digits] global_batch_size=5000": "the data set has 1797 samples",
}


@pytest.mark.parametrize("ranks", [2])
def test_what_only_the_ranks_can_see_is_refused_before_anything_is_measured(worlds: Pool, ranks: int, tmp_path: Path) -> None:
    """The message on every rank; tests/launch/test_bad_configurations.py has a launch that ends with one."""
    told = worlds.run(
        ranks, "tests.worlds.refusals:refusals", [[*line.split(), f"results_dir={tmp_path}"] for line in RANKS_REFUSE]
    )
    for on_ranks, words in zip(told, RANKS_REFUSE.values(), strict=True):
        assert len(on_ranks) == ranks
        assert all(words in said for said in on_ranks)
    assert not list(tmp_path.glob("default/2*/*/*.parquet"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/run/ranks/launcher"),
            "cannot write /run/ranks/launcher: Read-only file system",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "OSError: Cannot allocate memory"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "/a: No such file or directory"),
    ],
)
def test_what_the_system_refuses_is_said_as_it_is(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr("launch.__main__._do", fail)
    assert main([]) == 1
    assert capsys.readouterr().err == f"reducebench: {said}\n"


def test_a_gpu_without_device_files_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host that has just started has none before the first process that uses a GPU: seen on an H200."""
    monkeypatch.setattr("launch.devices._ROOT", tmp_path)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout="4\n"))
    monkeypatch.setattr("launch.devices._NVML", "libnosuch.so.1")
    assert visible_gpus() == 0
    for sign in ("proc/driver/nvidia/gpus/0000:00:06.0", "dev/nvidia0", "dev/kfd"):
        (tmp_path / sign).mkdir(parents=True)
        assert visible_gpus() == 4
        (tmp_path / sign).rmdir()
    monkeypatch.setattr("launch.devices._NVML", None)  # the program itself, which loads
    assert visible_gpus() == 4


@pytest.mark.parametrize(("nodes", "gpus"), [(["0", "0"], 0), (["0", "45012", "3877"], 2)])
def test_amds_driver_without_a_gpu_is_not_asked(
    nodes: list[str], gpus: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The driver lists a host's CPUs too, with the number 0."""
    monkeypatch.setattr("launch.devices._ROOT", tmp_path)
    monkeypatch.setattr("launch.devices._NVML", "libnosuch.so.1")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout="2\n"))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    for place, number in enumerate(nodes):
        node = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{place}"
        node.mkdir(parents=True)
        (node / "gpu_id").write_text(f"{number}\n")
    assert visible_gpus() == gpus


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
def test_gpus_that_the_configuration_hides_are_not_counted(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four GPUs, as torch counts them by the environment that it is started with."""
    monkeypatch.setattr("launch.devices._has_driver", lambda: True)
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(
        "subprocess.run", lambda *_, env, **__: SimpleNamespace(stdout=str(len(env.get(variable, "0,1,2,3").split(","))))
    )
    for given, ranks in (([], 4), ([f"+env.{variable}='0,2'"], 2)):
        assert main(["dry_run=true", *given]) == 0
        assert f"--nproc-per-node={ranks} " in capsys.readouterr().out
    assert main(["dry_run=true", "backend=nccl", "torchrun.nproc_per_node=4", f"+env.{variable}='0,2'"]) == 2
    assert "2 are visible" in capsys.readouterr().err


def test_a_checkout_that_is_not_installed_finds_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = compose_config([], nproc_per_node=1)
    monkeypatch.setattr("launch.compose.find_spec", lambda name: None)
    assert compose_config([], nproc_per_node=1) == installed


def test_a_run_that_ranks_refuse_leaves_nothing_and_latest_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["experiment=smoke", "workload=[mlp_digits]", "reduction=[mean]", f"results_dir={tmp_path / 'results'}"]
    verdicts = [Verdict(REFUSAL, ("refused",)), DONE, Verdict(REFUSAL, ("refused",)), Verdict(FAILURE, ("a rank died",))]
    monkeypatch.setattr("launch.job.run_launch", StandIn(verdicts=verdicts))
    results = tmp_path / "results" / "smoke"
    assert main(asked) == 2
    assert not results.exists()
    assert main(asked) == 0
    (first,) = [path for path in results.iterdir() if not path.is_symlink()]
    assert main(asked) == 2
    assert sorted(results.iterdir()) == sorted([first, results / "latest"])
    assert (results / "latest").resolve() == first
    assert main(asked) == 1
    assert (results / "latest").resolve() != first, "a run that failed is kept"


def test_a_run_directory_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, below: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("harness.schema.run_dir.write_whole", full)
    assert main(["experiment=smoke", f"results_dir={tmp_path / 'results'}"]) == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "results"]


def test_a_job_that_sbatch_refuses_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = ["launch=slurm", "torchrun.nproc_per_node=2", "experiment=smoke", f"results_dir={tmp_path / 'results'}"]
    assert main(asked) == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "results"]
