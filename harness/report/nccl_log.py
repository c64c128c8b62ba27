"""NCCL's own log, read: which algorithm, protocol and channels it chose, and how it found the machine.

The lines are those of NCCL 2.20 to 2.32 and of RCCL: src/enqueue.cc, src/scheduler/symmetric_sched.cc, src/init.cc and
src/transport/.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from harness.schema.config import BenchmarkConfig
from harness.schema.reading import open_file, reason
from harness.schema.run_dir import RunDir

COLUMNS = ["collective", "bytes", "message_bytes", "algorithm", "protocol", "channel_low", "channel_high", "calls"]
_ALGORITHMS = ("TREE", "RING", "COLLNET_DIRECT", "COLLNET_CHAIN", "NVLS", "NVLS_TREE", "PAT")
_PROTOCOLS = ("LL", "LL128", "SIMPLE")
"""Numbers in the log of NCCL before 2.24 (NCCL_ALGO_*, NCCL_PROTO_* of its headers)."""
_CHOICE = re.compile(
    r"(?:(?P<collective>[A-Za-z]{1,40}): )?(?P<bytes>\d{1,18}) Bytes -> "
    r"Algo (?P<algorithm>\w{1,40}) proto (?P<protocol>\w{1,40})"
    r"(?: channel\{Lo\.\.Hi\}=\{(?P<low>\d{1,6})\.\.(?P<high>\d{1,6})\})?",
    re.ASCII,
)
_SYMMETRIC = re.compile(
    r"(?P<collective>[A-Za-z]{1,40}) \[Symmetric\]: (?P<bytes>\d{1,18}) Bytes -> "
    r"Kernel (?P<protocol>\w{1,80}) nchannels (?P<count>\d{1,6})",
    re.ASCII,
)
"""A kernel on registered memory (NCCL 2.27 and later), which takes neither an algorithm nor a protocol."""
SYMMETRIC = "SYMMETRIC"
_COPIES = re.compile(
    r"(?P<collective>[A-Za-z]{1,40}) \[(?P<engine>Copy Engine|Hierarchical CE)\]: (?P<bytes>\d{1,18}) Bytes -> "
    r"(?P<protocol>[\w +]{1,60})",
    re.ASCII,
)
"""Copies by the GPU's copy engines in place of a kernel (NCCL 2.29 and later)."""
_SHARES = ("AllGather", "ReduceScatter")
"""Collectives of which NCCL 2.24 and later log one rank's share; others, and older ones, log the whole message."""
_FACTS = {
    "version": re.compile(r"(?:NCCL|RCCL) version ([\w.+ ()-]{1,80})"),
    "ranks and nodes": re.compile(r"nRanks (\d{1,9} nNodes \d{1,9})"),
    "channels": re.compile(r"(\d{1,6} coll channels, \d{1,6} collnet channels, \d{1,6} nvls channels, \d{1,6} p2p channels)"),
    "NVLS multicast": re.compile(r"NVLS multicast support is (not available|available)"),
    "network": re.compile(r"Using network (\w{1,40})"),
    "transport": re.compile(r" via ((?:P2P|SHM|NET)/[A-Za-z_]{1,40})"),
    "variable": re.compile(r"(NCCL_\w{1,60} set by environment to [^\n]{1,100})"),
}
_RANKS = re.compile(r"\bnRanks (\d{1,9})\b", re.ASCII)
_WARNING = re.compile(r"NCCL WARN ([^\n]{1,300})")
_MOST_BYTES, _MOST_IN_ALL, _LONGEST, _MOST_FILES = 2**26, 2**28, 2**12, 2**12
"""Limits on what is read: bytes of a file, of all files together, and of a line; files."""
_MOST_ROWS, _MOST_FACTS, _MOST_NAMED = 10_000, 20, 5
"""Limits on what is kept of all files together: different choices, different values of a fact, and problems by name."""
_MOST_WHOLE = 2**63 - 1
"""Largest number of a column of whole numbers."""
_LEAST_VERSION = "NCCL logs its choices from 2.20 on"


@dataclass(frozen=True)
class NcclLog:
    """NCCL's log of all processes of a run."""

    choices: pd.DataFrame
    """COLUMNS: `bytes` as logged, `message_bytes` as nccl-tests counts (NA: unknown); channels NA where none are logged."""
    facts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Name of a fact to its values, and how often each is logged."""
    warnings: tuple[str, ...] = ()
    """The last ones, in order."""
    reason: str = ""
    """Reason why there is no choice, or why some are missing."""

    def chosen(self, collective: str, message_bytes: int) -> str:
        """Choices for a message of a collective, in NCCL's words; empty if none is logged."""
        same = self.choices[(self.choices.collective == collective) & (self.choices.message_bytes == message_bytes)]
        return ", ".join(dict.fromkeys(map(spelled, same.to_dict("records"))))


def spelled(choice: Mapping[str, object]) -> str:
    """Algorithm, protocol and number of channels of a choice, as `RING LL x2`."""
    low, high = choice["channel_low"], choice["channel_high"]
    count = f" x{int(str(high)) - int(str(low)) + 1}" if pd.notna(low) and pd.notna(high) else ""
    return f"{choice['algorithm']} {choice['protocol']}{count}"


def load_nccl_log(run_dir: RunDir, config: BenchmarkConfig, environment: Mapping[str, object]) -> NcclLog | None:
    """Read the logs of a run; None if the run was not asked for them and has none."""
    files = run_dir.ranks.nccl_logs()
    if not files and not config.nccl_debug:
        return None
    read = _Reading()
    for file in files[:_MOST_FILES]:
        if read.left <= 0:
            break
        read.add(file)
    choices = read.table()
    why = [] if len(choices) else [_why_none(environment, read)]
    return NcclLog(choices, read.values(), tuple(read.warnings), "; ".join([*why, *read.gaps(len(files))]))


@dataclass
class _Reading:
    """Content of the logs that have been read so far."""

    counts: Counter[tuple[object, ...]] = field(default_factory=Counter)
    facts: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    files: int = 0
    lines: int = 0
    left: int = field(default_factory=lambda: _MOST_IN_ALL)
    """Bytes that may still be read."""
    left_out: int = 0
    """Lines with a choice beyond the limit on different ones."""

    def add(self, file: Path) -> None:
        """Read one file: the log of one process."""
        self.files += 1
        ranks: set[int] = set()
        found: Counter[tuple[object, ...]] = Counter()
        try:
            for line in self._lines(file):
                self.lines += 1
                self._take(line, ranks, found)
        except OSError as error:
            self.problems.append(f"{file.name}: {reason(error)}")
        size = ranks.pop() if len(ranks) == 1 else None  # a line does not name its communicator
        for (collective, count, whole, *rest), calls in found.items():
            message = count if whole else _product(count, size)
            self._count(self.counts, (collective, count, message, *rest), calls)

    def _lines(self, file: Path) -> Iterator[str]:
        """Lines of a log. A longer line is cut, and a longer file raises OSError at its limit."""
        with open_file(file, folders=1) as opened:
            most = left = min(_MOST_BYTES, self.left)
            while left > 0 and (line := opened.readline(min(_LONGEST, left))):
                left -= len(line)
                self.left -= len(line)
                yield line.decode(errors="replace")
            if left <= 0 and opened.read(1):
                raise OSError(None, f"only the first {most} bytes are read")

    def _count(self, counts: Counter[tuple[object, ...]], choice: tuple[object, ...], calls: int) -> None:
        """Add calls to a choice, unless it is one too many."""
        if choice in counts or len(counts) < _MOST_ROWS:
            counts[choice] += calls
        else:
            self.left_out += calls

    def _take(self, line: str, ranks: set[int], found: Counter[tuple[object, ...]]) -> None:
        choice = choice_of(line)
        if choice is not None:
            self._count(found, choice, 1)
            return
        if "CCL" not in line:
            return
        ranks.update(int(number) for number in _RANKS.findall(line)[:1])
        warning = _WARNING.search(line)
        if warning is not None:
            self.warnings = [*self.warnings, warning[1]][-_MOST_FACTS:]
        for name, pattern in _FACTS.items():
            value = pattern.search(line)
            if value is not None and (len(self.facts.setdefault(name, Counter())) < _MOST_FACTS):
                self.facts[name][value[1].strip().removesuffix(".")] += 1

    def table(self) -> pd.DataFrame:
        """One row a choice, the most frequent collective first, then by size."""
        rows = [(*choice, calls) for choice, calls in self.counts.items()]
        frame = pd.DataFrame(rows, columns=COLUMNS, dtype=object)  # pandas makes floats of whole numbers beside None
        for column in ("bytes", "message_bytes", "channel_low", "channel_high", "calls"):
            frame[column] = frame[column].astype("Int64")
        order = frame.groupby("collective").calls.transform("sum")
        return frame.assign(order=-order).sort_values(["order", *COLUMNS[:-1]], ignore_index=True).drop(columns="order")

    def values(self) -> dict[str, dict[str, int]]:
        """Facts in the order of their declaration."""
        return {name: dict(self.facts[name]) for name in _FACTS if name in self.facts}

    def gaps(self, files: int) -> Iterator[str]:
        """Reasons why parts of so many files are missing."""
        yield from self.problems[:_MOST_NAMED]
        if len(self.problems) > _MOST_NAMED:
            yield f"{len(self.problems) - _MOST_NAMED} files more are read in part or not at all"
        if self.files < files:
            yield f"{files - self.files} of {files} files are not read: the limit is {_MOST_FILES} files, {_MOST_IN_ALL} bytes"
        if self.left_out:
            yield f"{self.left_out} calls are left out: the limit is {_MOST_ROWS} different choices"


def _product(count: object, size: int | None) -> int | None:
    """Bytes of a message of which `count` is one rank's share; None where the number of ranks is unknown, or absurd."""
    message = int(str(count)) * (size or 0)
    return message if size and message <= _MOST_WHOLE else None


def choice_of(line: str) -> tuple[object, ...] | None:
    """(collective, bytes, if they are the whole message, algorithm, protocol, first channel, last channel) of a line."""
    if " Bytes -> " not in line:
        return None
    symmetric = _SYMMETRIC.search(line)
    if symmetric is not None:
        name, last = symmetric["collective"], max(int(symmetric["count"]) - 1, 0)
        return name, int(symmetric["bytes"]), name not in _SHARES, SYMMETRIC, symmetric["protocol"], 0, last
    copies = _COPIES.search(line)
    if copies is not None:
        name, engine = copies["collective"], copies["engine"].replace(" ", "_").upper()
        return name, int(copies["bytes"]), name not in _SHARES, engine, copies["protocol"].strip(), None, None
    found = _CHOICE.search(line)
    if found is None:
        return None
    name, low, high = found["collective"] or "", found["low"], found["high"]
    whole = name not in _SHARES or low is None
    algorithm, protocol = _named(found["algorithm"], _ALGORITHMS), _named(found["protocol"], _PROTOCOLS)
    channels = (int(low), int(high)) if low is not None else (None, None)
    return name, int(found["bytes"]), whole, algorithm, protocol, *channels


def _named(text: str, names: tuple[str, ...]) -> str:
    return names[int(text)] if text.isdigit() and int(text) < len(names) else text


def _why_none(environment: Mapping[str, object], read: _Reading) -> str:
    """Reason why no line tells a choice."""
    backend, size = environment.get("backend"), environment.get("world_size")
    variables = environment.get("environment_variables")
    kept = variables if isinstance(variables, Mapping) else {}
    if backend not in (None, "nccl"):
        return f"the backend is {backend}: there is no NCCL to log"
    if "NCCL_DEBUG_FILE" in kept:
        return f"NCCL_DEBUG_FILE={kept['NCCL_DEBUG_FILE']} was set: NCCL has logged there"
    for name, needed in (("NCCL_DEBUG", ("INFO", "TRACE")), ("NCCL_DEBUG_SUBSYS", ("TUNING", "ALL"))):
        if name in kept and not _asks(str(kept[name]), needed):
            return f"{name}={kept[name]} was set: it leaves out the choices; try {name}={needed[0]}, or unset it"
    if size == 1:
        return "one rank: NCCL launches no collective kernel, and chooses nothing"
    if not read.lines:
        return "NCCL has logged nothing"
    version = next(iter(read.facts.get("version", {})), "of an unknown version")
    return f"NCCL {version} has logged no choice; {_LEAST_VERSION}"


def _asks(value: str, needed: Iterable[str]) -> bool:
    """True if the value of a variable names one of `needed`; ^ excludes what it names."""
    names = value.upper().lstrip("^").split(",")
    return bool(set(names) & set(needed)) != value.startswith("^")
