"""Parent process of a run: configuration, run directory, the start of the ranks, the report."""

import sys

from launch.start import another_harness, is_command

_WHY = another_harness()
if _WHY and is_command():  # a traceback would not help
    sys.exit(_WHY)
if _WHY:
    raise ImportError(_WHY)
