"""Everything that reducebench installs, with its licence: `python -m tests.dependencies` writes docs/dependencies.md."""

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "dependencies.md"
_SELF = "reducebench"
_HEAD = """# Dependencies and their licences

Every package that `make` installs for Python 3.11 on Linux with a CPU build of torch, at the versions of constraints.txt, with
the licence that its own metadata names. `python -m tests.dependencies` writes this page, and a test compares it with what is
installed. A CUDA build of torch adds NVIDIA's libraries (proprietary licences) and triton (MIT), at versions that torch names.

"For" is what asks for the package first: `run` is reducebench itself, the others are its extras, and `build` is the wheel.

| package | version | licence | for |
| --- | --- | --- | --- |
"""


def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def asked() -> dict[str, list[str]]:
    """Requirements of reducebench itself (`run`), of each extra, and of the wheel (`build`)."""
    found = project()
    extras: dict[str, list[str]] = found["project"]["optional-dependencies"]
    own = {
        name: [line for line in lines if canonicalize_name(Requirement(line).name) != _SELF] for name, lines in extras.items()
    }
    return {"run": found["project"]["dependencies"], **own, "build": found["build-system"]["requires"]}


def installed() -> dict[str, tuple[Distribution, str]]:
    """Name to (distribution, what asks for it first) of all that is needed, directly or not, on this platform.

    Raises PackageNotFoundError where the environment lacks one.
    """
    found: dict[str, tuple[Distribution, str]] = {}
    for group, lines in asked().items():
        for name, one in _reached([Requirement(line) for line in lines]):
            found.setdefault(name, (one, group))
    return dict(sorted(found.items()))


def _reached(requirements: Sequence[Requirement]) -> Iterator[tuple[str, Distribution]]:
    waiting, seen = list(requirements), set[tuple[str, frozenset[str]]]()
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in seen:
            seen.add(key)
            one = distribution(requirement.name)
            yield key[0], one
            waiting += [inner for line in one.requires or [] if _holds(inner := Requirement(line), requirement.extras)]


def _holds(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""})


def version(one: Distribution) -> str:
    """Return the version without what a build adds, as in 2.13.0+cpu."""
    return one.version.partition("+")[0]


def licence(one: Distribution) -> str:
    """Return the licence as the package's metadata names it, in a line."""
    fields = one.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in fields.get_all("Classifier", []) if line.startswith("License :: ")]
    named = fields.get("License-Expression") or ", ".join(name for name in classifiers if name != "OSI Approved")
    return named or next(iter((fields.get("License") or "not named").splitlines()))


def page() -> str:
    """Return docs/dependencies.md for the packages that are installed."""
    rows = [f"| {name} | {version(one)} | {licence(one)} | {group} |" for name, (one, group) in installed().items()]
    return _HEAD + "\n".join([*rows, ""])


def pins() -> dict[str, str]:
    """Name to version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in found}


if __name__ == "__main__":
    try:
        PAGE.write_text(page())
    except PackageNotFoundError as error:
        sys.exit(f"{error}; try make")
