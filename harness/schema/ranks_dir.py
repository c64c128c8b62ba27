"""RanksDir: the only place that knows file names under a run's ranks/."""

import json
import os
import re
import shlex
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.schema.rank_state import RankStatus, read_rank_status
from harness.schema.reading import open_file, read_json, read_text
from harness.schema.whole_files import check_in_place, open_in_place, remove, write_whole

_TAIL = 2**16
"""Bytes of a log's end."""
_STARTS = "reducebench starts: "
_NCCL, _FLIGHT = "nccl.launch", "flight.launch"
_CAME = re.compile(r"node(?P<node>\d{1,9})\.came", re.ASCII)


class RanksDir:
    """What the ranks of a run, and the processes that supervise them, say of themselves and to each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run = path.parent

    def log(self, who: int | str) -> Path:
        """What rank `who`, or torchrun, said."""
        return self.path / f"{who}.log"

    def state(self, rank: int) -> Path:
        """The file of a rank's RankState."""
        return self.path / f"{rank}.state"

    def said(self, who: int | str) -> list[str]:
        """The last lines of a log, some of them; empty where there is none."""
        try:
            with open_file(self.log(who), folders=1) as file:
                file.seek(-min(_TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
                return file.read().decode(errors="replace").splitlines()
        except OSError:
            return []

    def nccl_log(self, launch: int) -> Path:
        """Pattern of the files to which NCCL logs in one launch; NCCL puts host and process in the place of %h and %p."""
        folder = str(self.path.absolute()).replace("%", "%%")
        return Path(folder) / f"{_NCCL}{launch}.%h.%p.log"

    def own_nccl_log(self, launch: int) -> Path:
        """File of `nccl_log` for this process, if NCCL calls the host as the system does."""
        return self.path / f"{_NCCL}{launch}.{socket.gethostname().partition('.')[0]}.{os.getpid()}.log"

    def nccl_logs(self) -> list[Path]:
        """Files that NCCL has logged to, in order of their names."""
        return sorted(self.path.glob(f"{_NCCL}*.log"))

    def flight_dump(self, launch: int, world: int) -> Path:
        """Prefix of the files to which torch's flight recorder writes in one world; torch appends the rank."""
        return self.path.absolute() / f"{_FLIGHT}{launch}.world{world}.rank_"

    def flight_dumps(self) -> list[Path]:
        """Files of torch's flight recorder, in order of their names. They are pickles: nothing of reducebench opens them."""
        return sorted(self.path.glob(f"{_FLIGHT}*"))

    def note_start(self, who: str, command: Sequence[str]) -> None:
        """Begin a process's part of its log, which may hold those of earlier worlds."""
        with self.open_log(who) as file:
            file.write(f"{_STARTS}{shlex.join(command)}\n".encode())

    def open_log(self, who: str) -> IO[bytes]:
        """Open a log for appending. Raises RefusedError if it is a link or not a regular file."""
        return os.fdopen(open_in_place(self.log(who), self._run, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")

    def check_logs(self) -> None:
        """Raise RefusedError if a log is a link or not a regular file: ranks would write to another file."""
        for path in sorted(self.path.glob("*.log")):
            check_in_place(path, self._run)

    def said_since_start(self, who: str) -> list[str]:
        """The last lines of a log, as `said`, without those of earlier worlds."""
        lines = self.said(who)
        begins = max((place + 1 for place, line in enumerate(lines) if line.startswith(_STARTS)), default=0)
        return lines[begins:]

    def hosts(self) -> dict[int, str]:
        """Node to the name of its host, of those that have come."""
        found = ((_CAME.fullmatch(path.name), path) for path in self.path.glob("node*.came"))
        return {int(came["node"]): self._text(path) for came, path in found if came}

    def said_by_torchrun(self) -> str:
        """What the torchrun of every host has logged last."""
        logs = sorted(self.path.glob("torchrun*.log"))
        return "\n".join(line for log in logs for line in self.said(log.stem))

    def forget(self) -> None:
        """Drop the states of an earlier world, so that its ranks are not taken for those of the next."""
        for path in [*self.path.glob("*.state"), *self.path.glob("node*.came")]:
            remove(path, self._run)

    def note_node(self, node: int) -> None:
        """A host of several has come, whatever becomes of its ranks."""
        self._write(self.path / f"node{node}.came", socket.gethostname())

    def absent_nodes(self, nodes: int) -> list[int]:
        """Those of `nodes` hosts that have not come."""
        return [node for node in range(nodes) if not (self.path / f"node{node}.came").is_file()]

    def note_job(self, job: str) -> None:
        """Which batch job works on this run, or waits for its turn."""
        self._write(self._job, job)

    def job(self) -> str:
        """The last batch job; empty where there was none."""
        return self._text(self._job).strip()

    @property
    def _job(self) -> Path:
        return self.path / "job"

    def order_end(self, world: str) -> None:
        """Tell whoever supervises ranks of this world on another host to end them."""
        self._write(self._end, world)

    def ordered_end(self) -> str:
        """The world that was told last to end; empty where none was."""
        return self._text(self._end)

    @staticmethod
    def _text(path: Path) -> str:
        """Content of a file; empty where there is none."""
        try:
            return read_text(path, folders=1)
        except OSError:
            return ""

    @property
    def _end(self) -> Path:
        return self.path / "end"

    def statuses(self) -> list[RankStatus]:
        """What the ranks that reported at all are doing, or were doing last; in order of rank."""
        found = (read_rank_status(path) for path in self.path.glob("*.state"))
        return sorted((status for status in found if status), key=lambda status: status.rank)

    def set_aside(self, names: Mapping[str, str]) -> None:
        """Cases, and probes, that are not to be tried again, and why."""
        self._write(self.path / "set_aside.json", json.dumps(dict(names)))

    def aside(self) -> dict[str, str]:
        """What `set_aside` was told last."""
        reasons = read_json(self.path / "set_aside.json", folders=1) or {}
        return {name: why for name, why in reasons.items() if isinstance(why, str)}

    def write_verdict(self, status: int, lines: Sequence[str]) -> None:
        """What a batch job has to tell the launcher that waits for it: its exit status, and lines for the user."""
        self._write(self._verdict, json.dumps({"status": status, "lines": list(lines)}))

    def verdict(self) -> tuple[int | None, list[str]]:
        """What the last batch job told; None where none has ended by itself."""
        verdict = read_json(self._verdict, folders=1) or {}
        status, lines = verdict.get("status"), verdict.get("lines")
        return (status if status in (0, 1, 2) else None), [str(line) for line in lines] if isinstance(lines, list) else []

    def forget_verdict(self) -> None:
        """Drop what an earlier batch job told."""
        remove(self._verdict, self._run)

    def _write(self, path: Path, text: str) -> None:
        write_whole(path, text.encode(), self._run)

    @property
    def _verdict(self) -> Path:
        return self.path / "verdict.json"
