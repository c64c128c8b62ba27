"""Summation trees: told from their ancestors, summed, and written down."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.numerics.trees import NoTreeError, Tree, ancestors_of, describe, evaluate, height, is_binary, leaves_of, tree_of
from harness.report.order_picture import parse


@st.composite
def trees(draw: st.DrawFn, binary: bool = False) -> Tree:
    """Of two to nine terms."""
    nodes: list[Tree] = list(draw(st.permutations(range(draw(st.integers(2, 9))))))
    while len(nodes) > 1:
        together = 2 if binary else draw(st.integers(2, len(nodes)))
        chosen = [nodes.pop(draw(st.integers(0, len(nodes) - 1))) for _ in range(together)]
        nodes.append(tuple(chosen))
    return nodes[0]


@given(trees())
def test_a_tree_is_told_from_its_ancestors(tree: Tree) -> None:
    found = tree_of(ancestors_of(tree))
    assert ancestors_of(found) == ancestors_of(tree)
    assert (height(found), is_binary(found), sorted(leaves_of(found))) == (
        height(tree),
        is_binary(tree),
        sorted(leaves_of(tree)),
    )


@given(trees(), st.data())
def test_one_wrong_pair_is_noticed(tree: Tree, data: st.DataObject) -> None:
    ancestors = ancestors_of(tree)
    one, other = data.draw(st.lists(st.integers(0, len(ancestors) - 1), min_size=2, max_size=2, unique=True))
    wrong = data.draw(st.integers(2, len(ancestors)).filter(lambda size: size != ancestors[one][other]) | st.just(99))
    ancestors[one][other] = ancestors[other][one] = wrong
    try:
        found = tree_of(ancestors)
    except NoTreeError:
        return
    assert ancestors_of(found) == ancestors, "it is another tree's"


@given(trees())
def test_what_is_written_down_is_read_again(tree: Tree) -> None:
    read = parse(describe(tree))
    assert read is not None
    assert ancestors_of(read) == ancestors_of(tree)


@pytest.mark.parametrize("text", ["", "3", "1 +", "(1 + 2", "1 + 2)", "wide", "1 + x", "(" * 100_000])
def test_what_is_no_tree_is_not_read(text: str) -> None:
    assert parse(text) is None


def test_the_height_is_that_of_the_longest_way() -> None:
    assert height(0) == 0
    assert height((0, 1)) == height((0, 1, 2)) == 1
    assert height((3, (1, (2, 0)))) == 3
    assert height(((2, 0), (1, (3, (4, 5))))) == 4


def test_the_larger_subtree_is_written_first() -> None:
    assert describe((3, (1, (2, 0)))) == "((0 + 2) + 1) + 3"


@given(trees(binary=True))
def test_masks_show_the_ancestors_of_the_sum(tree: Tree) -> None:
    """What the ancestors are told from: M and -M at two terms, 1 at all the others."""
    size = len(leaves_of(tree))
    for one in range(size):
        for other in range(one):
            terms = torch.ones(size)
            terms[one], terms[other] = 2.0**30, -(2.0**30)
            assert float(evaluate(tree, lambda leaf, terms=terms: terms[leaf])) == size - ancestors_of(tree)[one][other]


def test_rounding_is_that_of_the_order() -> None:
    terms = torch.tensor([1.0, 2.0**24, -(2.0**24)])
    assert float(evaluate((0, (1, 2)), lambda leaf: terms[leaf])) == 1.0
    assert float(evaluate(((0, 1), 2), lambda leaf: terms[leaf])) == 0.0
    with pytest.raises(ValueError, match="3 terms are added at once"):
        evaluate((0, 1, 2), lambda leaf: terms[leaf])
