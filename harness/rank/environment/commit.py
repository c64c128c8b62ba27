"""The commit of the checkout that the harness runs from."""

import subprocess
from pathlib import Path

_DIRTY = "-dirty"


def checkout() -> tuple[str | None, bool | None]:
    """The commit, and whether files were changed since; None outside of a checkout."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment inside another project's checkout is not ours
        described = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None, None
    return described.removesuffix(_DIRTY), described.endswith(_DIRTY)


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
