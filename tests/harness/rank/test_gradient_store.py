"""Gradients in files: the same bits come back, of any dtype, and files go when they are done with."""

from pathlib import Path

import torch

from harness.rank.gradient_store import GradientStore
from harness.schema.run_dir import RunDir


def test_bits_come_back(tmp_path: Path) -> None:
    store = GradientStore(tmp_path / "scratch", tmp_path)
    gradient = [
        ("a", torch.tensor([1.5, float("nan"), -0.0])),
        ("b", torch.randn(3, 5).double().T),
        ("none", torch.empty(0)),
        ("c", torch.randn(7).bfloat16()),
        ("d", torch.randn(2, 2).double()),
    ]
    store.save("x" * 1000, gradient)
    loaded = list(store.load("x" * 1000))
    assert [name for name, _ in loaded] == [name for name, _ in gradient]
    for (_, before), (_, after) in zip(gradient, loaded, strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert before.contiguous().view(-1).view(torch.uint8).equal(after.contiguous().view(-1).view(torch.uint8))
    store.drop(["x" * 1000, "never saved"])
    assert list((tmp_path / "scratch").iterdir()) == []


def test_ranks_do_not_share_a_store(tmp_path: Path) -> None:
    """A rank that writes under another one's name would truncate what that one has mapped."""
    run_dir = RunDir(tmp_path)
    stores = [GradientStore(run_dir.scratch(rank), tmp_path) for rank in range(2)]
    stores[0].save("reference", [("w", torch.ones(3))])
    stores[1].save("reference", [])
    assert [tensor.tolist() for _, tensor in stores[0].load("reference")] == [[1, 1, 1]]
    run_dir.remove_scratch()
    assert list(tmp_path.iterdir()) == []
