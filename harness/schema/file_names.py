"""File names made from texts of a run: options, case_ids, probes. The run may belong to another user."""

import hashlib
import re

_ORDINARY = re.compile(r"[\w=+][\w.=+ -]*")
_OTHER = re.compile(r"[^\w.=+ -]")
_MOST = 236
"""Largest number of bytes of a name: file systems accept 255, and `.launch999.parquet` may follow."""
_KEPT = 100
_MARK = "~"
"""Marks changed names. No ordinary name contains it, so a changed name never equals the name of another text."""


def file_name(text: str) -> str:
    """Name of one file or folder: an ordinary text is kept; any other loses its special characters and gets its digest.

    Ordinary: at most 236 bytes of letters, digits, `_`, `=`, `+` and, but for the first, `.`, `-` and spaces.
    """
    raw = text.encode(errors="surrogatepass")
    if _ORDINARY.fullmatch(text) and len(raw) <= _MOST:
        return text
    kept = _OTHER.sub("_", text).encode(errors="replace")[:_KEPT].decode(errors="ignore").lstrip(".- ")
    return f"{kept or '_'}{_MARK}{hashlib.sha256(raw).hexdigest()[:16]}"
