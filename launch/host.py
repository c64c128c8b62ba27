"""Requirements on a host, checked before ranks are started on it."""

import socket
from importlib.machinery import PathFinder
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import Torchrun
from harness.schema.rank_state import check_proc
from harness.schema.refusal import RefusedError
from launch.source import OWN

_CONNECT_S = 5.0
_LOOPBACK = "127.0.0.1"


def check_host(config: BenchmarkConfig) -> None:
    """Raises RefusedError where processes cannot be watched here, or ranks that are started here cannot reach each other."""
    check_proc()
    if isinstance(config.launcher, Torchrun):
        _check_loopback()
    else:
        _check_directory(Path.cwd())


def _check_directory(here: Path) -> None:
    """Refuse a directory with another `harness` or `launch`: other hosts run `python -m launch.node` in it, and import it."""
    for name in OWN:
        found = PathFinder.find_spec(name, [str(here)])
        if found and found.origin and Path(found.origin).resolve().parent.parent != Path(__file__).resolve().parent.parent:
            raise RefusedError(
                f"{found.origin}: other hosts would run it in place of reducebench's {name}, because they start in this "
                "directory; try another directory"
            )


def _check_loopback() -> None:
    """Ranks of one host meet at its loopback address."""
    try:
        with socket.create_server((_LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=_CONNECT_S).close()
    except OSError as error:
        raise RefusedError(
            f"{socket.gethostname()} has no network: {_LOOPBACK}, where the ranks of one host meet: {error.strerror or error}; "
            "try ip link set lo up"
        ) from error
