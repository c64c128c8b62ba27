"""Sizes in bytes, with units."""

import re

_POWERS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(r"(?P<number>\d{1,15}(\.\d{1,15})?)(?P<prefix>[KMGT]?)(I?B)?", re.ASCII)
BYTES = "bytes, with or without a unit: 64M, 64MB and 64MiB are each 64 * 2^20"


def to_bytes(text: str) -> int:
    """Return the number of bytes that `text` names: 4096, 64K, 64MB, 1.5GiB. Raises ValueError.

    K, M, G and T are powers of 2^10, with B, with iB or without both, in either case, as in nccl-tests
    and torch's bucket_cap_mb.
    """
    found = _SIZE.fullmatch(text.strip().upper())
    if not found or (found["number"] == text.strip() and "." in text):
        raise ValueError(f"not a size; accepted: {BYTES}")
    whole, _, fraction = found["number"].partition(".")
    factor = 1 << _POWERS[found["prefix"]]
    parts = int(whole + fraction) * factor
    size, left = divmod(parts, int(10 ** len(fraction)))
    if left:
        raise ValueError(f"not a whole number of bytes; accepted: {BYTES}")
    return size
