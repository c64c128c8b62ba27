"""What a model refuses, and what is no refusal."""

import errno
from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.probes.diagnosis.batches import unless_refused


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def exhausted() -> None:
    raise MemoryError


def on_the_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_batch_that_batchnorm_refuses_is_none() -> None:
    assert unless_refused(lambda: nn.BatchNorm1d(3)(torch.zeros(1, 3))) is None
    assert unless_refused(lambda: 1) == 1


@pytest.mark.parametrize("fail", [full, exhausted, on_the_device, lambda: torch.empty(2**50)])
def test_what_the_machine_lacks_is_raised(fail: Callable[[], object]) -> None:
    with pytest.raises((OSError, MemoryError, RuntimeError)):
        unless_refused(fail)
