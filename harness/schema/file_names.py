"""File names that are made of texts of a run: options, case_ids, probes. They may come from somebody else."""

import hashlib
import re

_ORDINARY = re.compile(r"[\w=+][\w.=+ -]*")
_OTHER = re.compile(r"[^\w.=+ -]")
_MOST = 236
"""Bytes of a name: file systems take 255, and `.launch999.parquet` may follow."""
_KEPT = 100
_MARK = "~"
"""Stands in no ordinary name: a name that was changed is never that of another text."""


def file_name(text: str) -> str:
    """Name of one file or folder: an ordinary text as it is; another one without what steers paths, and with its digest.

    Ordinary: at most 236 bytes of letters, digits, `_`, `=`, `+` and, but for the first, `.`, `-` and spaces.
    """
    raw = text.encode(errors="surrogatepass")
    if _ORDINARY.fullmatch(text) and len(raw) <= _MOST:
        return text
    kept = _OTHER.sub("_", text).encode(errors="replace")[:_KEPT].decode(errors="ignore").lstrip(".- ")
    return f"{kept or '_'}{_MARK}{hashlib.sha256(raw).hexdigest()[:16]}"
