"""Another user of this host: connects to a run's ports, and writes a pickle that creates a file into each of its stores.

    python -m tests.launch.stranger FILE RUN_ID STORE_PORT,... OTHER_PORT,...

Prints as JSON what became of each port. Needs root, to become nobody.
"""

import base64
import json
import os
import pickle
import pwd
import socket
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

OTHER_LOOPBACK = "127.0.0.2"
"""Reaches what listens on all addresses, and nothing that listens on 127.0.0.1 alone."""


class Payload:
    """Object that creates a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def main(path: str, run_id: str, stores: list[int], others: list[int]) -> None:
    become_nobody()
    pickled = base64.b64encode(pickle.dumps(Payload(path))).decode()
    written = {port: write(port, run_id, pickled) for port in stores}
    print(json.dumps({port: {"connects": reached(port), "written": written.get(port, [])} for port in (*stores, *others)}))


def become_nobody() -> None:
    "host".encode("idna")  # loads what connections need: nobody may be unable to read the interpreter's files
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)


def reached(port: int) -> list[str]:
    """Addresses of this host that take a connection."""
    return [address for address in ("127.0.0.1", OTHER_LOOPBACK, *other_addresses()) if connects(address, port)]


def other_addresses() -> list[str]:
    """This host's address on its way out, where it has one."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("192.0.2.1", 9))  # a datagram socket sends nothing to connect
        return [way.getsockname()[0]]
    return []


def connects(address: str, port: int) -> bool:
    with suppress(OSError):
        socket.create_connection((address, port), timeout=5).close()
        return True
    return False


def write(port: int, run_id: str, pickled: str) -> list[str]:
    """Write the keys of torchrun's c10d rendezvous, for the identity of the run and for those that the store shows."""
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    shown = store.list_keys() if hasattr(store, "list_keys") else []
    keys = {f"torch.rendezvous.{run_id}", *(key for key in shown if key.startswith("torch.rendezvous."))}
    for key in keys:
        store.set(key, pickled)
    return sorted(keys)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *([int(port) for port in word.split(",")] for word in sys.argv[3:]))
