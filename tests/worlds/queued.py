"""Runs on CPU ranks whose torch.cuda is a stand-in: what the second set of iterations leaves of the first."""

import pytest

from harness.rank import queued, trial
from harness.rank.process_group import World
from tests.fake_cuda import install
from tests.worlds import session


def measure(world: World, overrides: list[str], ahead: bool) -> str:
    """Run the matrix; `ahead`: as if no collective made the host wait. Return the path of the run directory."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch, queued)
        patch.setattr(trial, "can_hold", lambda device: True)
        if ahead:
            patch.setattr(trial, "host_waits", lambda *arguments, **more: "")
        return session.measure(world, overrides)
