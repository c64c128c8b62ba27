"""Parent process of a run: configuration, run directory, the start of the ranks, the report."""

import sys
from pathlib import Path

import harness

_FOUND = Path(harness.__file__ or harness.__path__[0]).resolve().parent

if _FOUND.parent != Path(__file__).resolve().parent.parent:
    _WHY = (
        f"reducebench: {_FOUND} is another package of the name harness, and python -m takes it, as it looks into the current "
        "directory first; try another directory, or the command reducebench"
    )
    if sys.argv[:1] == ["-m"]:  # while python -m looks for the module that it is to run: a traceback would help nobody
        sys.exit(_WHY)
    raise ImportError(_WHY)
