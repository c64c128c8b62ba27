"""How the global batch is cut over the ranks."""

import pytest

from harness.axes.sharding.by_length import ByLengthSharding
from harness.axes.sharding.empty_rank import EmptyRankSharding
from harness.axes.sharding.uneven import UnevenSharding
from harness.rank.material import prepare
from tests.options import make

SHARDINGS = make("sharding")


@pytest.mark.parametrize("name", SHARDINGS)
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_every_sample_has_one_rank(name: str, size: int) -> None:
    terms = [float(place % 5) for place in range(23)]
    shards = SHARDINGS[name].shards(terms, size)
    assert len(shards) == size
    assert sorted(index for shard in shards for index in shard) == list(range(23))


def test_shares_are_taken_in_turn_and_nobody_is_left_without() -> None:
    assert [len(shard) for shard in UnevenSharding([2, 1]).shards([1.0] * 63, 4)] == [21, 11, 20, 11]
    assert all(UnevenSharding([1000, 1]).shards([1.0] * 10, 3))


def test_sorted_by_length_the_ranks_of_transformer_topics_count_unequally() -> None:
    topics = make("workload")["transformer_topics"]
    for seed in range(3):
        material = prepare(topics, "transformer_topics", seed, 64)
        counts = [sum(material.terms[index] for index in shard) for shard in ByLengthSharding().shards(material.terms, 2)]
        assert counts[0] / counts[1] > 1.25  # the texts are those of the Python at hand


def test_an_empty_rank_has_nothing() -> None:
    assert EmptyRankSharding(rank=1).shards([1.0] * 5, 3) == [[0, 1, 2], [], [3, 4]]
    assert EmptyRankSharding(rank=0).shards([1.0] * 4, 2) == [[], [0, 1, 2, 3]]
