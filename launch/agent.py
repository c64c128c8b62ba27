"""torchrun of one host: its rendezvous holds no pickles and listens on the loopback address only.

Under `--standalone` torch.distributed.run keeps its state as pickles in a store that listens on all addresses: whoever writes
there can make it execute code. Its static rendezvous holds no pickles, but listens on all addresses, whatever the master's is.
"""

import os
import socket
import sys

import torch.distributed.run
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

ADDRESS, INTERFACE = "127.0.0.1", "lo"
BACKEND = "loopback"


class LoopbackRendezvous(RendezvousHandler):
    """A single host: this one is the first, and the store of its ranks is torchrun's own."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        if parameters.max_nodes != 1:
            raise ValueError(f"--nnodes={parameters.max_nodes}: expected 1; several hosts need --rdzv-backend=static")
        self._run_id = parameters.run_id
        self._port = parse_rendezvous_endpoint(parameters.endpoint, 0)[1]

    def next_rendezvous(self) -> RendezvousInfo:
        """Open the store. Raises OSError where the port is taken."""
        store = open_store(self._port)
        return RendezvousInfo(PrefixStore("torchelastic", store), 0, 1, RendezvousStoreInfo(ADDRESS, store.port))

    @property
    def use_agent_store(self) -> bool:
        """Return True: ranks open no store of their own, which would listen on all addresses."""
        return True

    def get_backend(self) -> str:
        """Return its name for `--rdzv-backend`."""
        return BACKEND

    def get_run_id(self) -> str:
        """Return the value of `--rdzv-id`."""
        return self._run_id

    def is_closed(self) -> bool:
        """Return False: no other host can join."""
        return False

    def set_closed(self) -> None:
        """Do nothing: no other host can join."""

    def num_nodes_waiting(self) -> int:
        """Return 0: no other host can join."""
        return 0

    def shutdown(self) -> bool:
        """Leave the store to the process, which ends."""
        return True


def open_store(port: int) -> TCPStore:
    """Create a store that listens on the loopback address only; port 0 selects a free port."""
    listening = socket.create_server((ADDRESS, port), backlog=socket.SOMAXCONN)
    port = listening.getsockname()[1]
    return TCPStore(ADDRESS, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


def main() -> None:
    """Run torchrun with the options of the command line; none comes from the environment."""
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]  # an option of torchrun's: PET_STANDALONE=1 would choose its own rendezvous
    if not os.environ.get("GLOO_SOCKET_IFNAME"):
        os.environ["GLOO_SOCKET_IFNAME"] = INTERFACE  # gloo would listen on the address that the host's name resolves to
    rendezvous_handler_registry.register(BACKEND, LoopbackRendezvous)
    torch.distributed.run.main([f"--rdzv-backend={BACKEND}", *sys.argv[1:]])


if __name__ == "__main__":
    main()
