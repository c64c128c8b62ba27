"""What a test needs of the machine. Where it is missing the test is skipped, with the reason; in CI, which has it, it fails.

Root in a container may still not mount, or make namespaces: what is needed is tried, not guessed from the user's number.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache

import pytest

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where a user's PATH may leave out what root runs."""


def needs(missing: str) -> None:
    """`missing` is the reason why a test cannot run here; empty when it can."""
    if missing and os.environ.get("REDUCEBENCH_NO_SKIPS"):
        pytest.fail(f"{missing}, and CI installs what tests need")
    if missing:
        pytest.skip(missing)


def absent(*programs: str) -> str:
    """Which of them are not installed, as a reason; empty when all are."""
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    return f"needs {', '.join(missing)}" if missing else ""


def refused(*command: str) -> str:
    """Why a command fails here, in its own words; empty when it does not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    words = " ".join(done.stderr.split()) or f"status {done.returncode}"
    return f"{shlex.join(command[:2])}: {words}" if done.returncode else ""


@cache
def no_mounts() -> str:
    """Why nothing can be mounted here; empty when it can. Tries a tmpfs of its own."""
    with tempfile.TemporaryDirectory() as folder:
        why = refused("mount", "-t", "tmpfs", "-o", "size=1m", "reducebench-trial", folder)
        if not why:
            subprocess.run(["umount", "-l", folder], check=True)
    return f"needs to mount: {why}" if why else ""
