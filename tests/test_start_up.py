"""What ranks import, and what they say of how they started; in a real run."""

import pytest

from harness.report.frame import Run, load_run
from harness.schema.run_dir import RunDir
from tests.running import launch

MODULES = '''"""Whether a rank holds a module, when everything else has been done."""

import gc
import sys

from harness.probes.base import Probe, Question
from harness.schema.record import Observation


class ModulesProbe(Probe):
    def questions(self, machine):
        return [Question("modules", self._ask)]

    def _ask(self):
        names = ("torch", "pandas", "sklearn", "matplotlib")
        yield from (Observation("sys.modules", name, name in sys.modules) for name in names)
        yield Observation("gc", "enabled", gc.isenabled())
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("start_up")
    (folder / "probe").mkdir()
    (folder / "seen.py").write_text(MODULES)
    (folder / "probe" / "modules.yaml").write_text("modules: {_target_: seen.ModulesProbe}\n")
    done = launch(
        *("workload=[mlp_digits]", "reduction=[mean]", "iterations=2", "probe=[modules]"),
        *("--config-dir", str(folder), f"results_dir={folder}"),
    )
    assert done.returncode == 0, done.stderr
    return load_run(folder / "default" / "latest")


def test_no_rank_imports_pandas_or_sklearn(run: Run) -> None:
    held = run.observations.groupby(["rank", "quantity"]).value.first().unstack()
    assert len(held) == 2
    assert (held.torch == 1).all()
    assert (held[["pandas", "sklearn", "matplotlib"]] == 0).all(axis=None)
    assert (held.enabled == 1).all()


def test_ranks_tell_when_they_reached_each_phase(run: Run) -> None:
    phases = ("start", "import", "join", "assemble", "resume", "pre-flight", "forward", "backward")
    statuses = RunDir(run.path).ranks.statuses()
    assert len(statuses) == 2
    for status in statuses:
        times = [status.reached[phase] for phase in phases]
        assert times == sorted(times)
