"""torchrun of one host: where it and its ranks listen, and what another user of the host can do there."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from launch.agent import ADDRESS, BACKEND, LoopbackRendezvous
from tests.launch.stranger import OTHER_LOOPBACK, connects
from tests.needs import needs
from tests.running import ENVIRONMENT, HANG_S, ROOT
from tests.worlds.pool import Pool

_LISTENS = "0A"
"""State of a socket in /proc/net/tcp."""
_READ_S = 1.0
"""torchrun's c10d rendezvous reads its state ten times in it."""


def rendezvous(endpoint: str, nodes: int = 1) -> LoopbackRendezvous:
    return LoopbackRendezvous(RendezvousParameters(BACKEND, endpoint, "none", nodes, nodes))


def test_the_store_listens_at_the_loopback_address_alone() -> None:
    found = rendezvous("127.0.0.1:0").next_rendezvous()
    assert found.bootstrap_store_info is not None
    address, port = found.bootstrap_store_info.master_addr, found.bootstrap_store_info.master_port
    assert (found.rank, found.world_size, address) == (0, 1, ADDRESS)
    found.store.set("key", "value")
    assert found.store.get("key") == b"value"
    assert connects(ADDRESS, port)
    assert not connects(OTHER_LOOPBACK, port)
    with socket.create_server(("", 0)) as everywhere:
        assert connects(OTHER_LOOPBACK, everywhere.getsockname()[1]), "the premise"


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server((ADDRESS, 0)) as taken, pytest.raises(OSError, match="Address already in use"):
        rendezvous(f"127.0.0.1:{taken.getsockname()[1]}").next_rendezvous()


def test_several_hosts_are_refused() -> None:
    with pytest.raises(ValueError, match="--nnodes=2"):
        rendezvous("127.0.0.1:0", nodes=2)


def sockets(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


def listening(pid: int) -> Iterator[tuple[str, int]]:
    """(address, port) of each socket at which a process listens."""
    held = sockets(pid)
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTENS and words[9] in held:
                address, _, port = words[1].partition(":")
                yield spelled(address, family), int(port, 16)


def spelled(address: str, family: int) -> str:
    """An address that the kernel writes as words of 32 bits in the machine's byte order."""
    raw = b"".join(int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
    return socket.inet_ntop(family, raw)


@pytest.mark.parametrize("ranks", [2])
def test_another_user_reaches_loopback_ports_alone_and_has_nothing_executed(worlds: Pool, ranks: int, tmp_path: Path) -> None:
    agent, *rest = worlds.run(ranks, "tests.worlds.ports:processes")
    ports = {pid: list(listening(pid)) for pid in (agent, *rest)}
    assert all(ports.values()), "each process has a store, a lifeline, or a group of gloo"
    assert {address for found in ports.values() for address, _ in found} == {"127.0.0.1"}
    assert worlds.run(ranks, "tests.worlds.ports:interface") == "lo", "where the host's name leads elsewhere"
    needs("" if os.geteuid() == 0 else "needs root, to become nobody")
    file, stores = tmp_path / "executed", [port for _, port in ports[agent]]
    others = [port for pid in rest for _, port in ports[pid]]
    seen = stranger(file, stores, others)
    assert all(seen[str(port)]["connects"] == ["127.0.0.1"] for port in (*stores, *others))
    assert all("torch.rendezvous.none" in seen[str(port)]["written"] for port in stores), "the premise: it is in the store"
    time.sleep(_READ_S)
    assert not file.exists()
    assert worlds.run(ranks, "tests.worlds.ports:processes") == [agent, *rest], "the world goes on"


def stranger(file: Path, stores: list[int], others: list[int]) -> dict[str, dict[str, list[str]]]:
    words = [str(file), "none", ",".join(map(str, stores)), ",".join(map(str, others))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.stranger", *words],
        cwd=ROOT,
        env={**ENVIRONMENT, "TORCH_CPP_LOG_LEVEL": "FATAL"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found
