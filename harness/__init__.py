"""reducebench: which gradient did the ranks really compute, what did it cost, and why does it differ?

The public names: `from harness import audit, load_run`; where reducebench is installed, also `from reducebench import ...`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.probes.diagnosis.user_code import audit
    from harness.report.frame import load_run

__version__ = "0.1.0"
__all__ = ["__version__", "audit", "load_run"]

_MODULES = {"audit": "harness.probes.diagnosis.user_code", "load_run": "harness.report.frame"}
"""Public name to the module that defines it. Modules are imported at the first use: torch takes seconds, pandas 0.5 s."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
