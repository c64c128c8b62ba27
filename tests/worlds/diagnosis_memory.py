"""Memory that the diagnosis of a case takes, in gradients of the case."""

import ctypes
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.axes.workload.base import Workload
from harness.rank import diagnose
from harness.rank.counterfactuals import Known
from harness.rank.diagnose import Diagnoses
from harness.rank.gradient_store import GradientStore
from harness.rank.material import prepare
from harness.rank.process_group import World
from harness.rank.reference import References
from harness.rank.regressors import Regressors
from harness.rank.trial import Trial
from harness.schema.case import AXES
from tests.options import make, parts_of

FEATURES, CLASSES, SAMPLES = 400, 8000, 8
"""3.2 million parameters, 12.8 MB in float32."""
_M_MMAP_THRESHOLD = -3
"""Of malloc.h."""
Peaks = dict[str, int]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, FEATURES, generator=generator), torch.randint(CLASSES, (SAMPLES,), generator=generator)


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) * 1024


class Watch:
    """The most memory in each of several states."""

    def __init__(self) -> None:
        self.state, self.peaks, self._ended = "", Peaks(), False
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended:
            state, now = self.state, anonymous()
            if self.state == state:  # else it may be of the one that came meanwhile
                self.peaks[state] = max(self.peaks.get(state, 0), now)
            time.sleep(0.0005)

    def end(self) -> None:
        """Before the interpreter does."""
        self._ended = True
        self._thread.join()

    @contextmanager
    def during(self, state: str) -> Iterator[None]:
        before, self.state = self.state, state
        try:
            yield
        finally:
            self.state = before


def watched(watch: Watch, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **more: Any) -> Any:
        with watch.during("float64"):
            return call(*arguments, **more)

    return wrapped


def peaks(world: World) -> dict[str, float]:
    """Watch a case, its diagnosis without what it computes in float64, and that, in a world of its own.

    Return {"case": ..., "diagnosis": ..., "float64": ...}: the most anonymous memory of any rank above what was there before,
    over the bytes of the gradient.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)  # what is freed goes back at once
    options = {axis: make(axis) for axis in AXES}
    workload = Workload(model=partial(nn.Linear, FEATURES, CLASSES), loss=nn.CrossEntropyLoss, data=data)
    chosen = {"reduction": "mean", "normalization": "global_mean", "fault": "rank_counted_twice", "precision": "fp32"}
    trial = Trial(parts_of(options, workload, **chosen), prepare(workload, "large", 0, SAMPLES), world, 1, 2)
    watch = Watch()
    diagnose.run_in_float64 = watched(watch, diagnose.run_in_float64)
    for name in ("summed", "signed", "samples"):
        setattr(Regressors, name, watched(watch, getattr(Regressors, name)))
    with tempfile.TemporaryDirectory() as folder:
        store = GradientStore(Path(folder), Path(folder))
        references = References(store, world.control, world.device, 0)
        known = Known(
            references.shard_wise("large", trial.material, trial.cut.shards()), references.full_batch("large", trial.material)
        )
        trial.measure(enter=lambda phase: None)
        before = anonymous()
        with watch.during("case"):
            gradient = trial.measure(enter=lambda phase: None).gradient
        held = anonymous()
        with watch.during("diagnosis"):
            found = Diagnoses(store, references).of("large", trial, gradient, known)
    assert found.verdict == "weighting", found
    size = sum(tensor.nbytes for _, tensor in gradient)
    own = torch.tensor([watch.peaks["case"] - before, watch.peaks["diagnosis"] - held, watch.peaks["float64"] - held]) / size
    ranks = torch.stack(world.control.all_gather(own)).amax(0).tolist()
    watch.end()
    return dict(zip(("case", "diagnosis", "float64"), ranks, strict=True))
