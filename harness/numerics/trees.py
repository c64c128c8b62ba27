"""Summation trees: in which order the terms of a sum were added.

A tree is a leaf, the number of a term, or the tuple of the trees whose sums are added at once. A binary tree says everything
about a sum of floats that rounds after every addition: addition commutes, so the order of the two operands makes no difference.

Trees are told from sums of masks (FPRev: revealing floating-point accumulation order, arXiv 2411.00442). One term is M, another
-M and all the others 1, M so large that M + 1 = M. What meets M before -M does is lost, so that the sum is the number of terms
outside the smallest subtree that holds both.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations, product

from torch import Tensor

Tree = int | tuple["Tree", ...]
Ancestors = Sequence[Sequence[int]]
"""[i][j]: terms of the smallest subtree that holds the terms i and j; 1 where they are one."""


class NoTreeError(Exception):
    """Numbers that no tree has: the sum was not made by rounded additions one after the other, or not every time alike."""


def tree_of(ancestors: Ancestors) -> Tree:
    """The tree that has these ancestors; checked against all pairs. Raises NoTreeError."""
    tree = _tree_of(ancestors, list(range(len(ancestors))))
    if ancestors_of(tree) != [list(row) for row in ancestors]:
        raise NoTreeError("the pairs contradict each other")
    return tree


def _tree_of(ancestors: Ancestors, terms: list[int]) -> Tree:
    """Terms whose smallest common subtree is smaller than the whole lie below the same child."""
    if len(terms) == 1:
        return terms[0]
    children: list[list[int]] = []
    for term in terms:
        mine = next((child for child in children if ancestors[child[0]][term] < len(terms)), None)
        if mine is None:
            children.append([term])
        else:
            mine.append(term)
    if len(children) == 1:
        raise NoTreeError("a subtree has no root")
    return tuple(_tree_of(ancestors, child) for child in children)


def ancestors_of(tree: Tree) -> list[list[int]]:
    """The matrix that tree_of takes."""
    size = len(leaves_of(tree))
    found = [[1] * size for _ in range(size)]
    for below in _subtrees(tree):
        parts = [leaves_of(child) for child in below]
        for ours, theirs in permutations(parts, 2):
            for one, other in product(ours, theirs):
                found[one][other] = sum(map(len, parts))
    return found


def _subtrees(tree: Tree) -> Iterator[tuple[Tree, ...]]:
    if isinstance(tree, tuple):
        yield tree
        for child in tree:
            yield from _subtrees(child)


def leaves_of(tree: Tree) -> list[int]:
    """Its terms, from left to right."""
    return [tree] if isinstance(tree, int) else [leaf for child in tree for leaf in leaves_of(child)]


def height(tree: Tree) -> int:
    """Additions on the longest way from a term to the sum: the h of the error bound h * u / (1 - h * u) * sum |x|."""
    return 0 if isinstance(tree, int) else 1 + max(map(height, tree))


def is_binary(tree: Tree) -> bool:
    """Whether it says everything. Of three terms added at once, as by a wide accumulator, nobody knows the rounding."""
    return all(len(children) == 2 for children in _subtrees(tree))


def evaluate(tree: Tree, term: Callable[[int], Tensor]) -> Tensor:
    """The sum of the terms in this order, rounded to their dtype at each addition. Raises ValueError where it is not binary."""
    if isinstance(tree, int):
        return term(tree)
    if len(tree) != 2:
        raise ValueError(f"{len(tree)} terms are added at once: their rounding is not known")
    left, right = (evaluate(child, term) for child in tree)
    return left + right


def describe(tree: Tree) -> str:
    """In brackets, what has more terms first, as `((0 + 1) + 2) + 3`."""
    if isinstance(tree, int):
        return str(tree)
    return " + ".join(map(_bracketed, sorted(tree, key=lambda child: (-len(leaves_of(child)), min(leaves_of(child))))))


def _bracketed(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({describe(tree)})"
