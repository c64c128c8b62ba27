"""What the kernel tells in files. A file that is not there, or not readable, is None: nothing here raises."""

from pathlib import Path


def text(path: Path) -> str | None:
    """Its content, without the last line's end."""
    try:
        return path.read_text(errors="replace").rstrip()
    except OSError:
        return None


def number(path: Path) -> int | None:
    """Its content as a whole number."""
    content = text(path)
    return int(content) if content is not None and content.lstrip("-").isdigit() else None


def keyed(path: Path, separator: str | None = None) -> dict[str, str]:
    """Lines of a key and its value; the first line of each key counts."""
    pairs = [line.split(separator, 1) for line in reversed((text(path) or "").splitlines())]
    return {key.strip(): value.strip() for key, value in (pair for pair in pairs if len(pair) == 2)}


def cpu_list(spelled: str | None) -> set[int]:
    """CPUs of a list as the kernel spells it: `0-3,8`."""
    spans = [span.partition("-") for span in (spelled or "").split(",") if span.strip()]
    return {cpu for first, _, last in spans for cpu in range(int(first), int(last or first) + 1)}


def spell_cpus(cpus: set[int]) -> str:
    """The list as the kernel spells it."""
    starts = [cpu for cpu in sorted(cpus) if cpu - 1 not in cpus]
    ends = [cpu for cpu in sorted(cpus) if cpu + 1 not in cpus]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True))
