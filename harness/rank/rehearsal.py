"""When a run goes on: finished cases run again, untimed and unwritten, so that others can be held against their gradients."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from harness.probes.bits import digest
from harness.rank.agreement import CaseFailedError, together
from harness.rank.compare import Comparisons
from harness.rank.drift import Drifts
from harness.rank.process_group import World
from harness.rank.progress import Row
from harness.rank.trial import Trial
from harness.schema.case import Case
from harness.schema.rank_state import RankState
from harness.schema.record import OK, Finding


@dataclass
class Rehearsal:
    """Replay of the cases that were finished before this world began, a setting at a time. All ranks call alike.

    It makes the iterations up to the one whose gradient is compared. Those that are timed with the host ahead of the device
    came after it, on the same model, and are not made again.
    """

    world: World
    state: RankState
    comparisons: Comparisons
    drifts: Drifts
    finished: Mapping[Case, Row]
    aside: Mapping[str, str]
    """What is not to be tried again, as `rehearse <case_id>`, and why."""
    _settings: set[Case] = field(default_factory=set)
    _changed: list[Case] = field(default_factory=list)
    """Those that came out with other bits; on rank 0."""
    _failed: dict[Case, str] = field(default_factory=dict)

    def of(self, setting: Case, trial_of: Callable[[Case, Row], Trial]) -> None:
        """Once a setting; a death meanwhile is none of the case that waits for it."""
        if setting in self._settings:
            return
        self._settings.add(setting)
        waiting = self.state.status.case
        for case, row in self.finished.items():
            if case.setting == setting and row.status == OK:
                self._try(case, row, trial_of)
        self.state.update(case=waiting)

    def _try(self, case: Case, row: Row, trial_of: Callable[[Case, Row], Trial]) -> None:
        name = f"rehearse {case.case_id}"
        if name in self.aside:
            self._failed[case] = self.aside[name]
            return
        self.state.update(case=name)
        self.state.enter("rehearse")
        self.world.control.changed = {}  # the rows of this case stand, and those of the case that waits do not get them
        try:
            trial = trial_of(case, row)
            together(self.world.control, lambda: self._run(case, trial, row))
            self.state.enter("drift")
            self.drifts.of(case, trial)
        except CaseFailedError as error:  # its own rows stand; those of the others lack what they would be held against
            self._failed[case] = str(error)
            self.world.rebuild_measured()
            self.world.check_default()  # the next one would be measured in a broken world

    def _run(self, case: Case, trial: Trial, row: Row) -> None:
        gradient = trial.measure(self.state.enter).gradient
        self.state.enter("rehearse")  # rank 0 saves: its own work, however long the others wait for it
        if self.world.rank == 0:
            if digest(gradient).hex() != row.gradient_sha256:
                self._changed.append(case)
            self.comparisons.keep(case, gradient)

    def findings(self, case: Case) -> Iterator[Finding]:
        """What of the case's comparisons is not as in a run that was never interrupted."""
        for other in self._changed:
            if other.setting == case.setting:
                words = f"{other.case_id} was run again when the run went on, with other bits: this case is held against those"
                yield Finding(case.case_id, "not_repeated", words, float("nan"))
        for other, why in self._failed.items():
            if other.setting == case.setting:
                words = f"{other.case_id} could not be run again when the run went on, so nothing is held against it: {why}"
                yield Finding(case.case_id, "not_compared", words, float("nan"))
