"""A copy of the tree to which an axis is added as CONTRIBUTING.md says, and what must then hold in a process of the copy."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIONS = {
    "harness/axes/echo/__init__.py": "",
    "harness/axes/echo/base.py": '''"""Echo: by what the aggregated gradient is multiplied."""

from collections.abc import Callable

import torch
from torch import nn

from harness.schema.context import Option


class Echo(Option):
    """A factor of the aggregated gradient."""

    factor = 1.0

    def echoing(self, parameters: list[nn.Parameter]) -> Callable[[], None] | None:
        """Multiply `.grad` of the parameters in place."""
        if self.factor == 1.0:
            return None
        return lambda: torch._foreach_mul_([one.grad for one in parameters if one.grad is not None], self.factor)
''',
    "harness/axes/echo/none.py": '''"""As it is."""

from harness.axes.echo.base import Echo


class NoneEcho(Echo):
    """As it is."""
''',
    "harness/axes/echo/times.py": '''"""A multiple."""

from harness.axes.echo.base import Echo
from harness.schema.parameters import Positive


class TimesEcho(Echo):
    """A multiple."""

    def __init__(self, factor: Positive = 2.0) -> None:
        self.factor = factor
''',
    "conf/echo/none.yaml": "none:\n  _target_: harness.axes.echo.none.NoneEcho\n",
    "conf/echo/times.yaml": "times:\n  _target_: harness.axes.echo.times.TimesEcho\n  _sweepable_: [factor]\n  factor: 2.0\n",
}
"""Files of the options of an axis, which no other file lists."""
EDITS = {
    "harness/schema/case.py": {
        "    nodes: Mapping[": '    echo: str = _axis("by what the gradient is multiplied", usual="none")\n    nodes: Mapping[',
    },
    "conf/config.yaml": {
        "  - probe: []": "  - echo: [none]                     # by what the gradient is multiplied\n  - probe: []",
    },
    "harness/rank/rig.py": {
        "from harness.axes.execution.base": "from harness.axes.echo.base import Echo\nfrom harness.axes.execution.base",
        "    clip: Clip\n": "    clip: Clip\n    echo: Echo\n",
        '            ("clip", ': '            ("echo", parts.echo.echoing(trained)),\n            ("clip", ',
    },
}
"""Every other file that changes, and how."""
LINE = ("workload=[mlp_digits]", "reduction=[sum]", "aggregation=[local]", "echo=[none,times]", "echo.times.factor=[2,3]")


def copy(folder: Path, edits: dict[str, dict[str, str]]) -> None:
    """Copy the tree without the axis; write its options, and edit the other files."""
    for name in ("harness", "launch", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True)
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    for file, text in OPTIONS.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    for file, changes in edits.items():
        text = (folder / file).read_text()
        for before, after in changes.items():
            assert text.count(before) == 1, (file, before)
            text = text.replace(before, after)
        (folder / file).write_text(text)
    (folder / "harness" / "conf").unlink(missing_ok=True)
    (folder / "harness" / "conf").symlink_to(folder / "conf")  # precedes the conf/ of an editable install


def check_launcher(case_id: str) -> None:
    """Offered, expanded, named and shown. `case_id`: of the case with the usual option, before the axis was added."""
    import pandas as pd

    from harness.report.labels import labelled
    from harness.schema.matrix import expand_cases
    from launch.compose import available_options, compose_config
    from launch.help import help_text

    assert available_options()["echo"] == ["none", "times"]
    assert "\n  echo           none, times: by what the gradient is multiplied\n" in help_text(available_options())
    cases = expand_cases(compose_config(LINE, nproc_per_node=1))
    usual, *others = (case.case_id for case in cases)
    assert usual == case_id
    assert [other.rpartition("-")[0] for other in others] == [f"{case_id.rpartition('-')[0]}.echo=times"] * 2
    assert len({*cases, usual, *others}) == 6
    rows = [{"case_id": case.case_id, **case.options, **dict(case.parameters)} for case in cases]
    labels = labelled(pd.DataFrame(rows))
    assert labels[["echo", "echo.factor"]].to_numpy().tolist() == [["none", ""], ["times", "2"], ["times", "3"]]


def check_rank() -> None:
    """Each case's option is made and used, and belongs to the key of each baseline that runs it."""
    from types import SimpleNamespace
    from typing import Any

    import torch

    from harness.probes.control import Control
    from harness.rank.alone import bare_step, on_one_rank, silent
    from harness.rank.assemble import assemble
    from harness.rank.material import prepare
    from harness.rank.trial import Trial
    from harness.schema.case import Baseline, kept_in
    from harness.schema.matrix import expand_cases
    from launch.compose import compose_config

    cases = expand_cases(compose_config(LINE, nproc_per_node=1))
    parts = assemble(cases)
    assert [part.echo.factor for part in parts.values()] == [1.0, 2, 3]  # type: ignore[attr-defined]
    for baseline, of in (
        (Baseline.BARE_STEP, bare_step),
        (Baseline.ONE_RANK, on_one_rank),
        (Baseline.WITHOUT_COMMUNICATION, silent),
    ):
        runs = [of(part).echo is part.echo for part in parts.values()]  # type: ignore[attr-defined]
        assert all(runs) and len({case.key(kept_in(baseline)) for case in cases}) == 3
    world: Any = SimpleNamespace(
        rank=0, size=1, device=torch.device("cpu"), measured=None, ranks_per_node=1, subgroups=None, control=Control(None, 0, 1)
    )
    material = prepare(parts[cases[0]].workload, "mlp_digits", 0, 8)
    found = [
        torch.cat([one.flatten() for one in Trial(part, material, world, asked_warm_up=0, measured=1).gradient()])
        for part in parts.values()
    ]
    assert torch.equal(found[1], 2 * found[0]) and torch.allclose(found[2], 3 * found[0]) and found[0].any()
