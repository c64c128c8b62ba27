"""`python launch/start.py MODULE ARGUMENTS`: `python -m MODULE` with this reducebench, whatever the current directory contains.

`python -m` looks into the current directory first, and would run a folder `harness` or `launch` there. Here both come from
beside this file. All other modules are found as `python -m` finds them, the user's own in the current directory among them.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the module under the name `__main__`, with the rest of the command line."""
    safe = getattr(sys.flags, "safe_path", False)  # Python 3.11: neither this file's folder nor the current one is on the path
    if not safe:
        del sys.path[0]
    load_own()
    if not safe:
        sys.path.insert(0, str(Path.cwd()))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def load_own() -> None:
    """Import both packages from beside this file; their submodules are then found there, however sys.path changes."""
    sys.path.insert(0, str(Path(__file__).absolute().parent.parent))
    try:
        import harness  # noqa: F401
        import launch  # noqa: F401
    finally:
        del sys.path[0]


def another_harness() -> str:
    """Return a message if `import harness` does not find the package beside this one; otherwise an empty text."""
    import harness

    found = Path(harness.__file__ or harness.__path__[0]).resolve().parent
    if found.parent == Path(__file__).resolve().parent.parent:
        return ""
    return (
        f"reducebench: {found} is another package of the name harness, and is found first, as python -m looks into the current "
        "directory, and then into PYTHONPATH; try another directory, or the command reducebench"
    )


def is_command() -> bool:
    """Return True while `python -m` looks for the module that it is to run, and in a console script."""
    return sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name.startswith("reducebench")


if __name__ == "__main__":
    main()
