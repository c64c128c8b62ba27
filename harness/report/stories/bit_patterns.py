"""Bit patterns that probes counted, for the stories."""

from harness.report.frame import Run
from harness.report.stories.claims import NotSeenError, largest, seen


def patterns(run: Run, probe: str, subject: str, setting: str) -> tuple[int, int, float]:
    """The fewest runs, the most distinct bit patterns, and the largest relative L2 that was seen."""
    rows = {
        q: seen(run, probe, subject=subject, setting=setting, quantity=q).value for q in ("runs", "distinct", "relative_l2")
    }
    return int(rows["runs"].min()), int(rows["distinct"].max()), largest(rows["relative_l2"])


def distinct_patterns(run: Run, setting: str) -> int:
    """The most bit patterns of any workload; 1 where there was no other process to ask."""
    try:
        return int(largest(seen(run, "repeatability", setting=setting, quantity="distinct").value))
    except NotSeenError:
        if setting == "across processes":
            return 1
        raise


def counted(distinct: int) -> str:
    """1 bit pattern, 2 bit patterns."""
    return f"{distinct} bit pattern{'s' * (distinct > 1)}"
