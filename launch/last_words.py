"""Last words of a process, from its log: the line of the error, rather than the last line."""

import re
from collections.abc import Sequence

from harness.schema.launcher import Torchrun
from harness.schema.run_dir import RunDir

_ERROR = re.compile(r"(^|: )[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt)\b.*|what\(\):|^ssh: |^srun: error|^reducebench: ")
_FOLLOWS = re.compile(
    r"ChildFailedError|SignalException|^Extension modules:|^\s*File |^\s*<no Python frame>|^(Current thread|Thread) 0x|"
    r"^frame #|^\s*$|^=+$|^-+$"
)
"""Lines that tell of no cause: what follows from another process's end, and the frames of a dump."""
_ABORTED, _WHAT = "Fatal Python error: Aborted", "what():"
_LONGEST = 300
_TAKEN = ("EADDRINUSE", "address already in use", "Address already in use")


def last_words(lines: Sequence[str]) -> str:
    """The last line that names an error; else the end. For a log in which an error is the end of its process."""
    errors = [line for line in _telling(lines) if _ERROR.search(line)]
    causes = [line for line in errors if _is_taken(line)]  # torchrun's own error after it says "see inner exception"
    return (causes or errors)[-1][:_LONGEST] if errors else end_of(lines)


def end_of(lines: Sequence[str]) -> str:
    """The last line that is no frame of a dump; of a library that aborted, what it says. Empty where there is none."""
    telling = _telling(lines)
    if telling[-1:] == [_ABORTED] and telling[-2:-1] and telling[-2].startswith(_WHAT):
        telling.pop()
    return (telling or [""])[-1][:_LONGEST]


def _is_taken(words: str) -> bool:
    return any(taken in words for taken in _TAKEN)


def _telling(lines: Sequence[str]) -> list[str]:
    return [line.strip() for line in lines if not _FOLLOWS.search(line)]


def why_it_left(run_dir: RunDir, name: str) -> str:
    """Return what the log of a process that starts ranks says of its end, and of torchrun's; and what to do, if known."""
    ends = (end_of_log(run_dir, log) for log in (*_torchruns(run_dir, name), name))
    return next((f"; {end}" for end in ends if end), f"; see ranks/{name}.log")


def end_of_log(run_dir: RunDir, log: str) -> str:
    """The last words of a log, with its name, its host, and what to do, if known; empty where it has none."""
    words = last_words(run_dir.ranks.said_since_start(log))
    return f"ranks/{log}.log{_host(run_dir, log)} ends: {words}{_advice(run_dir, words)}" if words else ""


def _torchruns(run_dir: RunDir, name: str) -> list[str]:
    """Logs of the torchruns that the process started, of its own node or of all, that name an error."""
    logs = sorted(path.stem for path in run_dir.ranks.path.glob("torchrun.*.log"))
    own = logs if name == "srun" else [log for log in logs if log == name.replace("node", "torchrun.")]
    return [log for log in own if names_an_error(run_dir, log)]


def names_an_error(run_dir: RunDir, log: str) -> bool:
    """Return True if a log's last words are those of an error."""
    return bool(_ERROR.search(last_words(run_dir.ranks.said_since_start(log))))


def _host(run_dir: RunDir, log: str) -> str:
    node = re.fullmatch(r"(?:torchrun\.|node)(\d+)", log)
    host = run_dir.ranks.hosts().get(int(node[1])) if node else None
    return f" on {host}" if host else ""


def _advice(run_dir: RunDir, words: str) -> str:
    if not _is_taken(words):
        return ""
    launcher = run_dir.config().launcher
    free = ", or 0 for a free one" if isinstance(launcher, Torchrun) else ""
    port = f"launch.master_port={launcher.master_port}" if launcher.master_port else "launch.master_port"
    return f" ({port}: another process listens there; try another port{free})"
