"""Questions put to the machine, and the audit of a training step of one's own: `from harness.probes import audit`."""

from harness.probes.diagnosis.user_code import audit

__all__ = ["audit"]
