"""Random numbers come from the seed and from what they are for, never from the order of execution."""

import hashlib


def derive_seed(seed: int, *purpose: str) -> int:
    """A seed in [0, 2**63) that depends on `seed` and on the words of `purpose` alone."""
    text = "\0".join((str(seed), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
