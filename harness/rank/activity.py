"""Activity: CPU time, and bytes read and written, of this process. They tell slow work from a hang."""

import time
from dataclasses import dataclass

import psutil

from harness.schema.processes import UNSEEN

_CPU_SHARE = 0.05
"""CPU seconds a second. A loop that sleeps and polls takes less: 0.3% at 100 polls a second."""
_BYTES_PER_S = 2**14
"""The guard's own looks at processes read 3 KiB/s."""


@dataclass(frozen=True)
class _Sample:
    at: float
    cpu_s: float
    transferred: int


@dataclass
class Activity:
    """Samples of the last `window_s` seconds."""

    window_s: float
    _samples: tuple[_Sample, ...] = ()
    """Replaced and never changed: another thread reads."""

    def look(self) -> None:
        """Take a sample."""
        now = time.monotonic()
        recent = (sample for sample in self._samples if sample.at >= now - self.window_s)
        self._samples = (*recent, _Sample(now, time.process_time(), _transferred()))

    @property
    def busy(self) -> bool:
        """True if the process has computed, read or written more than a thread that only waits."""
        if not (samples := self._samples):
            return False
        first, last = samples[0], samples[-1]
        seconds = last.at - first.at
        cpu_s, transferred = last.cpu_s - first.cpu_s, last.transferred - first.transferred
        return cpu_s > _CPU_SHARE * seconds or transferred > _BYTES_PER_S * seconds


def _transferred() -> int:
    """Bytes of all reads and writes of the process, also those that the page cache served; 0 where the kernel hides them."""
    try:
        counts = psutil.Process().io_counters()
    except (*UNSEEN, AttributeError, RuntimeError):  # psutil has no such method, or finds an empty file
        return 0
    return int(counts.read_chars + counts.write_chars)
