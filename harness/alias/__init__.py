"""reducebench: the public names of harness. An installation has this package; a checkout has `harness` alone."""

from typing import TYPE_CHECKING, Any

import harness
from harness import __version__

if TYPE_CHECKING:
    from harness import audit, load_run

__all__ = ["__version__", "audit", "load_run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(harness, name)


def __dir__() -> list[str]:
    return __all__
