"""Two hosts on one machine: network namespaces with names of their own, joined by a veth pair. Needs root and iproute2."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.needs import PATH, absent, needs, refused


@dataclass(frozen=True)
class Hosts:
    """Names, which `enter` takes, and the first one's address."""

    names: tuple[str, str]
    address: str
    enter: Path
    """An executable that takes a host and a command for its shell, as ssh does."""

    def link(self, state: str) -> None:
        """Cut the cable, or mend it: down, up."""
        _ip("-n", self.names[1], "link", "set", "wire", state)

    def overrides(self) -> list[str]:
        """What has `python -m launch` start its ranks on both."""
        return [
            "launch=torchrun_nodes",
            f"launch.hosts=[{','.join(self.names)}]",
            f"launch.ssh=[{self.enter}]",
            f"launch.master_addr={self.address}",
            "torchrun.nproc_per_node=1",
            "+env.GLOO_SOCKET_IFNAME=wire",
        ]


@contextmanager
def two_hosts(folder: Path, tag: str) -> Iterator[Hosts]:
    """`tag` tells them from others' at the same time. They are gone with the block."""
    names = (f"rb{tag}a", f"rb{tag}b")
    enter = folder / "enter"
    enter.write_text(_ENTER)
    enter.chmod(0o755)
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for place, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.77.0.{place}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
        yield Hosts(names, "10.77.0.1", enter)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def with_ssh(hosts: Hosts, folder: Path) -> Iterator[list[str]]:
    """An sshd on the second host and one on the first; yields what has a launcher on the first start its ranks by them.

    Skips the test where ssh is not installed.
    """
    needs(absent("ssh", "sshd", "ssh-keygen"))
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    options = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "StrictModes": "no",
        "PidFile": "none",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
    }
    client = {
        "IdentityFile": folder / "user",
        "BatchMode": "yes",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
        "ConnectionAttempts": "20",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in client.items()))
    with _daemons(hosts, options):
        yield [
            "launch=torchrun_nodes",
            "launch.hosts=[10.77.0.1,10.77.0.2]",
            f"launch.ssh=[ssh,-F,{folder / 'config'}]",
            "torchrun.nproc_per_node=1",
            "+env.GLOO_SOCKET_IFNAME=wire",
            "device=cpu",  # sshd gives its sessions an environment of their own, in which GPUs are not hidden
        ]


@contextmanager
def _daemons(hosts: Hosts, options: Mapping[str, object]) -> Iterator[None]:
    """An sshd on each host. The folder that each wants, and that a distribution's own service makes, is gone with them."""
    sshd = shutil.which("sshd", path=PATH)  # sshd insists on its full path
    served = " ".join(f"-o {name}={value}" for name, value in options.items())
    with _privilege_separation(Path("/run/sshd")):
        daemons = [subprocess.Popen([str(hosts.enter), name, f"exec {sshd} -D -f /dev/null {served}"]) for name in hosts.names]
        try:
            yield
        finally:
            for daemon in daemons:
                daemon.kill()
                daemon.wait()


@contextmanager
def _privilege_separation(folder: Path) -> Iterator[None]:
    """The folder, for as long as the block; one that was there before stays."""
    try:
        folder.mkdir()
    except FileExistsError:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):  # another test's daemon has put something there
            folder.rmdir()


_ENTER = f"""#!/bin/sh
# HOST COMMAND: as ssh does it, in a namespace of network and of the host's name.
export PATH="{Path(sys.executable).parent}:$PATH"
exec ip netns exec "$1" unshare --uts sh -c 'hostname "$0"; exec sh -c "$1"' "$1" "$2"
"""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _missing() -> str:
    """Whether such hosts can be made is seen by making them."""
    lacking = absent("ip", "unshare", "hostname")
    if lacking:
        return lacking
    with tempfile.TemporaryDirectory() as folder:
        try:
            with two_hosts(Path(folder), f"p{os.getpid()}") as hosts:
                why = refused(str(hosts.enter), hosts.names[1], "true")
        except subprocess.CalledProcessError as error:
            why = f"{' '.join(error.cmd)}: {error.stderr.strip()}"
        except OSError as error:  # it lies where this user's PATH does not lead
            why = str(error)
    return f"needs namespaces: {why}" if why else ""


MISSING = _missing()
"""Why there can be no such hosts here; empty when there can."""
