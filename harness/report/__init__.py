"""Reading runs: `from harness.report import load_run`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.report.frame import Run, load_run

__all__ = ["Run", "load_run"]


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for: pandas takes half a second, and --help needs none of it."""
    if name not in __all__:
        raise AttributeError(name)
    from harness.report import frame

    return getattr(frame, name)
