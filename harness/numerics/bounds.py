"""How far rounding may put a sum: bounds by the height of its tree, and the noise floor that permutations show.

Worst case: |error| <= h u / (1 - h u) * sum |x_i| for a tree of height h and the unit roundoff u (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 4.2). Probable: about sqrt(h) u * sum |x_i|, as rounding errors of
independent sign make it (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019).
"""

import math

import torch


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: 2^-24 of float32, 2^-8 of bfloat16."""
    return torch.finfo(dtype).eps / 2


def worst_case(height: int, dtype: torch.dtype) -> float:
    """Of a sum's error over the sum of the terms' magnitudes; inf where h u >= 1, and nothing is known."""
    reached = height * unit_roundoff(dtype)
    return reached / (1 - reached) if reached < 1 else math.inf


def probable(height: int, dtype: torch.dtype) -> float:
    """Likewise: what the error is in practice within a small factor."""
    return math.sqrt(height) * unit_roundoff(dtype)


def pairwise_height(terms: int) -> int:
    """Of a balanced tree: the least that a sum of so many terms can have."""
    return max(terms - 1, 0).bit_length()
