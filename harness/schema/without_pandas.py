"""pyarrow without pandas, for ranks and the launcher."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    """Finder that refuses pandas."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "pandas":
            raise ImportError("tables are read and written without it")


def keep_pandas_out() -> None:
    """Have pyarrow import no pandas, unless it has been imported already.

    With its first array or scalar pyarrow tries once to import pandas, which takes half a second. What needs pandas imports it
    later, as does `Table.to_pandas`.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)
