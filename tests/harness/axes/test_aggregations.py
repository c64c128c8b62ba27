"""Strategies of aggregation, beside the closed forms that tests/harness/rank/test_closed_form.py holds them to."""

import json
from pathlib import Path

import pytest
import torch

from harness.axes.aggregation.buffers import InBuckets, by_dtype, flatten, unflatten
from tests.running import torchrun


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ddp_leaves_the_bits_of_a_plain_script(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "equal.json"
    done = torchrun(ranks, "-m", "tests.worlds.plain_ddp", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == {"mlp_digits": True, "cnn_digits": True, "transformer_topics": True}


def test_buckets_hold_what_fits_and_one_dtype() -> None:
    sizes = [(2, torch.float32), (1, torch.float32), (8, torch.float32), (1, torch.float32), (1, torch.float64)]
    gradients = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
    found = [[tensor.numel() for tensor in bucket] for bucket in InBuckets(bytes=12).buckets(gradients)]
    assert found == [[2, 1], [8], [1], [1]], "12 bytes; one that is too large is alone; another dtype is apart"
    assert list(InBuckets(bytes=12).buckets([])) == []
    with pytest.raises(ValueError, match="bytes=0"):
        InBuckets(bytes=0)


def test_a_buffer_is_padded_and_comes_back() -> None:
    gradients = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.arange(4.0)]
    buffer = flatten(gradients, multiple=4)
    assert buffer.tolist() == [0, 1, 2, 3, 4, 5, 7, 0, 1, 2, 3, 0]
    unflatten(2 * buffer, gradients)
    assert gradients[0].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert float(gradients[1]) == 14
    assert [len(alike) for alike in by_dtype([*gradients, gradients[0].double()])] == [3, 1]
