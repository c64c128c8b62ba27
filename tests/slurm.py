"""A real Slurm for one command: controller, munge and two nodes in namespaces of their own, which end with it.

Nothing is left outside: no process, no interface, no file but in the given folder. Needs root, and the packages slurm-wlm,
munge and iproute2.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.needs import absent, refused

_INSIDE = ("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh")
_TRIAL = 'PATH="$PATH:/usr/sbin:/sbin"; hostname rbhead && mount --bind /tmp /tmp && ip link add wire type veth peer name other'
"""What the cluster's own script begins with."""


def _missing() -> str:
    why = refused(*_INSIDE, "-c", _TRIAL)
    return f"needs namespaces: {why}" if why else ""


MISSING = absent("slurmctld", "slurmd", "munged", "sbatch", "srun", "ip", "unshare", "hostname") or _missing()
"""Why there can be none here; empty when there can."""


def under_slurm(folder: Path, command: Sequence[str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run a command on the login host of a cluster of two nodes with two CPUs each, whose files lie in `folder`."""
    for name in ("state", "spool.node0", "spool.node1", "munge"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (folder / "slurm.conf").write_text(_CONFIGURATION.format(folder=folder))
    (folder / "hosts").write_text("127.0.0.1 localhost\n10.88.0.1 rbhead node0 node1\n")
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o400)
    (folder / "up").write_text(_UP.format(folder=folder, command=shlex.join(command)))
    inside = [*_INSIDE, str(folder / "up")]
    return subprocess.run(inside, capture_output=True, text=True, timeout=timeout, check=False)


_CONFIGURATION = """
ClusterName=rb
SlurmctldHost=rbhead(10.88.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=5
SlurmctldPort=17000
NodeName=node0 NodeAddr=10.88.0.1 Port=17001 CPUs=2
NodeName=node1 NodeAddr=10.88.0.1 Port=17002 CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""
_UP = """
set -e
export PATH="$PATH:/usr/sbin:/sbin"
hostname rbhead
mount --bind {folder}/hosts /etc/hosts
ip link set lo up
ip link add wire type veth peer name other
ip addr add 10.88.0.1/24 dev wire
ip link set wire up
ip link set other up
munged --force --key-file {folder}/munge/key --socket {folder}/munge/socket --pid-file {folder}/munge/pid \
    --log-file {folder}/munge/log --seed-file {folder}/munge/seed
export SLURM_CONF={folder}/slurm.conf
slurmctld
slurmd -N node0
slurmd -N node1
for wait in $(seq 100); do
    test "$(sinfo -h -t idle -o %D)" = 2 && break
    sleep 0.1
done
{command}
"""
