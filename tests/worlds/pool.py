"""Worlds that stay up and run one function after another: starting a world takes longer than most tests need it for.

    with Pool() as pool:
        pool.run(3, "tests.worlds.clocks:offsets", 0.5)

calls `offsets(world, 0.5)` on three ranks and returns what rank 0 returns, through JSON.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tests.running import AGENT, BEGUN_S, ENDED_S, ENVIRONMENT, HANG_S, ROOT, wait_until

PEERS_S = 2.0
"""Seconds that the other ranks get once one has failed: in a collective, they may wait for it forever."""
_DIED = "died"
_SHOWN = 500
"""Characters of the arguments in an error."""


class WorldError(AssertionError):
    """A function raised, or did not return, on some rank of a world."""


class RankDiedError(WorldError):
    """A rank ended without an answer."""


class Pool:
    """One world of each size, started when it is first needed, and again after a function failed in it."""

    def __init__(self) -> None:
        self._worlds: dict[int, _World] = {}
        self._repeated = False
        self.started = 0
        """Worlds so far."""

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, ranks: int, function: str, *arguments: Any, timeout_s: float = HANG_S) -> Any:
        """Call `module:function(world, *arguments)` on every rank, and return what rank 0 returns.

        Raises WorldError with the ranks that failed and their tracebacks; the next call gets another world. A rank that ends
        without an error in Python, as by a signal, gets a second try and a warning, once in the life of the pool.
        """
        try:
            return self._run(ranks, function, arguments, timeout_s)
        except RankDiedError as error:
            if self._repeated:
                raise
            self._repeated = True
            warnings.warn(f"a rank died, and the call is repeated in another world: {error}", stacklevel=2)
            return self._run(ranks, function, arguments, timeout_s)

    def _run(self, ranks: int, function: str, arguments: Sequence[Any], timeout_s: float) -> Any:
        if ranks not in self._worlds:
            self._worlds[ranks] = _World(ranks)
            self.started += 1
        try:
            return self._worlds[ranks].call(function, list(arguments), timeout_s)
        except BaseException:
            self._worlds.pop(ranks).kill()
            raise

    def close(self) -> None:
        """End every world."""
        for world in self._worlds.values():
            world.let_go()
        for world in self._worlds.values():
            world.end()
        self._worlds.clear()


class _Rank:
    """The pool's end of a rank: lines of JSON over a socket."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._connection, self._lines = connection, connection.makefile("r")
        hello = self.receive()
        if hello is None:
            raise WorldError("a rank ended before it said which one it is")
        self.rank: int = hello["rank"]
        self.pid: int = hello["pid"]

    def fileno(self) -> int:
        """For `wait`."""
        return self._connection.fileno()

    def send(self, message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # a rank that has died is met by `receive`
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next message; None where the rank has died."""
        line = ""
        with suppress(ConnectionResetError):
            line = self._lines.readline()
        return json.loads(line) if line else None

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


class _World:
    """A torchrun world of `tests.worlds.serve`."""

    def __init__(self, ranks: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="world"))
        self._log = self._folder / "log"
        self._begin = 0
        """Bytes of the log before the current call."""
        self._ranks: list[_Rank] = []
        address = str(self._folder / "pool")
        command = [*AGENT, f"--log-dir={self._folder}", f"--nproc-per-node={ranks}", "-m", "tests.worlds.serve", address]
        with socket.socket(socket.AF_UNIX) as listener, self._log.open("wb") as log:
            listener.bind(address)
            listener.listen(ranks)
            listener.settimeout(0.5)
            self._torchrun = subprocess.Popen(
                command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                self._ranks = sorted((self._accepted(listener) for _ in range(ranks)), key=lambda rank: rank.rank)
            except BaseException:
                self.kill()
                raise

    def _accepted(self, listener: socket.socket) -> _Rank:
        deadline = time.monotonic() + BEGUN_S
        while time.monotonic() < deadline and self._torchrun.poll() is None:
            with suppress(TimeoutError):
                return _Rank(listener.accept()[0])
        raise WorldError(f"a world did not start:\n{self._log.read_text()}")

    def call(self, function: str, arguments: list[Any], timeout_s: float) -> Any:
        """Call a function on every rank."""
        test = os.environ.get("PYTEST_CURRENT_TEST", "")
        self._begin = self._log.stat().st_size
        for rank in self._ranks:
            rank.send({"function": function, "arguments": arguments, "test": test})
        answers, failed = self._answers(time.monotonic() + timeout_s)
        if failed:
            called = f"{function} on {len(self._ranks)} ranks, called with {json.dumps(arguments)[:_SHOWN]}"
            died = self._death() if _DIED in failed.values() else ""
            kind = RankDiedError if died else WorldError
            raise kind("\n".join([called, *(f"rank {rank}: {failed[rank]}" for rank in sorted(failed)), died]))
        return answers[0]

    def _answers(self, deadline: float) -> tuple[dict[int, Any], dict[int, str]]:
        """Collect what each rank returned, and why each other rank did not."""
        waiting = list(self._ranks)
        answers, failed = dict[int, Any](), dict[int, str]()
        while waiting:
            ready = wait(waiting, max(deadline - time.monotonic(), 0))
            if not ready:
                return answers, {**failed, **dict.fromkeys((rank.rank for rank in waiting), self._stacks(waiting))}
            for rank in ready:
                waiting.remove(rank)
                answer = rank.receive() or {"failed": _DIED}
                if "failed" in answer:
                    failed[rank.rank] = answer["failed"]
                    deadline = min(deadline, time.monotonic() + PEERS_S)
                else:
                    answers[rank.rank] = answer["result"]
        return answers, failed

    def _death(self) -> str:
        """Return the log of the current call, once torchrun has written to it which signal or status ended the rank."""
        with suppress(subprocess.TimeoutExpired):
            self._torchrun.wait(ENDED_S)
        return f"log of the world during this call:\n{self._log.read_bytes()[self._begin :].decode(errors='replace')}"

    def _stacks(self, silent: list[_Rank]) -> str:
        """Return the stacks of ranks that do not answer."""
        begin = self._log.stat().st_size
        for rank in silent:
            rank.signal(signal.SIGUSR1)
        wait_until(lambda: self._log.read_text()[begin:].count("most recent call first") >= len(silent), ENDED_S)
        return f"did not return; stacks of the ranks that did not:\n{self._log.read_text()[begin:]}"

    def let_go(self) -> None:
        """Have the ranks leave together."""
        for rank in self._ranks:
            rank.close()

    def end(self) -> None:
        """Wait for ranks that were let go."""
        with suppress(subprocess.TimeoutExpired):
            self._torchrun.wait(ENDED_S)
        self.kill()

    def kill(self) -> None:
        """Leave no process and no file."""
        for rank in self._ranks:
            rank.signal(signal.SIGKILL)
            rank.close()
        self._torchrun.terminate()  # it ends the ranks that had not been heard of
        try:
            self._torchrun.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            self._torchrun.kill()
            self._torchrun.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
