"""What gates decided, for machines: a JSON summary and a JUnit file."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from harness.report.gates import BROKEN, KEPT, UNTOLD, Judged
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.text import plain
from harness.schema.whole_files import write_whole


def write_files(run_dir: RunDir, files: Mapping[str, tuple[Path | None, bytes]]) -> None:
    """Write each content to the path that the user gave, or under its name to the report of the run.

    Raises RefusedError where it cannot be written.
    """
    for name, (asked, content) in files.items():
        try:
            _write_to(asked, content) if asked else run_dir.write_report(name, content)
        except OSError as error:
            raise RefusedError(f"cannot write {asked or run_dir.report / name}: {error.strerror or error}") from error


def _write_to(asked: Path, content: bytes) -> None:
    """Write to a path that the user named: links are followed; a pipe or a device, as /dev/stdout, is not replaced."""
    if asked.exists() and not asked.is_file():  # as it is spelled: /dev/stdout resolves to pipe:[...], which is no path
        asked.write_bytes(content)
        return
    path = asked.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, path.parent)


def summary(judged: Sequence[Judged], **more: Any) -> bytes:
    """JSON: `status`, as the command exits; counts; every gate and case; and `more`. Numbers that JSON lacks are null."""
    counts = Counter(one.outcome for one in judged)
    told = {
        "status": int(counts[BROKEN] > 0),
        "gates": {outcome: counts[outcome] for outcome in (BROKEN, KEPT, UNTOLD)},
        "judged": [vars(one) for one in judged],
        **more,
    }
    return json.dumps(_finite(told), indent=2, allow_nan=False).encode()


def junit(judged: Sequence[Judged]) -> bytes:
    """JUnit's XML: a suite a gate, a test a case; a broken gate is a failure, one that nothing can be told of is skipped."""
    root = ElementTree.Element("testsuites")
    for gate in dict.fromkeys(one.gate for one in judged):
        own = [one for one in judged if one.gate == gate]
        counts = Counter(one.outcome for one in own)
        numbers = {"tests": len(own), "failures": counts[BROKEN], "skipped": counts[UNTOLD], "errors": 0}
        told = {key: str(value) for key, value in numbers.items()}
        suite = ElementTree.SubElement(root, "testsuite", {"name": plain(gate), **told})
        for one in own:
            test = ElementTree.SubElement(suite, "testcase", classname=plain(gate), name=plain(one.case))
            if one.outcome != KEPT:
                kind = "failure" if one.outcome == BROKEN else "skipped"
                ElementTree.SubElement(test, kind, message=plain(f"{one.outcome}: {one.why}"))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, wherever they stand."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
