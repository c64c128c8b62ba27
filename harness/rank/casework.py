"""One case after the other, or in turns: from the first visit to a case to its row in `cases`."""

from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import nan
from time import perf_counter

import torch

from harness.axes.workload.base import Workload
from harness.probes.bits import digest
from harness.rank.agreement import CaseFailedError, together
from harness.rank.common_clock import CommonClock
from harness.rank.compare import SHARDS, Apart, Compared, Comparisons
from harness.rank.diagnose import Diagnoses
from harness.rank.diagnosis_rows import rows_of, verdicts
from harness.rank.drift import Drifts
from harness.rank.findings import changed_settings, findings
from harness.rank.footprint import Footprint
from harness.rank.material import Material
from harness.rank.memory import DeviceMemory
from harness.rank.nvtx import Ranges
from harness.rank.process_group import World
from harness.rank.profiling import Tracer
from harness.rank.progress import Row
from harness.rank.rehearsal import Rehearsal
from harness.rank.rig import Parts
from harness.rank.telemetry import Telemetry
from harness.rank.trial import Measured, Trial
from harness.rank.usage import Usages
from harness.rank.writer import Writer
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig, UntilConfig
from harness.schema.rank_state import RankState
from harness.schema.record import CUDA_QUEUED, FAILED, OK, QUEUED_STEP, SKIPPED, Discrepancy, Finding, Memory, Outcome


@dataclass
class CaseWork:
    """What one rank needs to visit the cases, and what it keeps between visits. All ranks call alike."""

    config: BenchmarkConfig
    world: World
    state: RankState
    parts: dict[Case, Parts]
    """In the order of the launch."""
    materials: dict[Workload, Material]
    comparisons: Comparisons
    diagnoses: Diagnoses
    drifts: Drifts
    writer: Writer
    usages: Usages
    footprint: Footprint
    telemetry: Telemetry
    clock: CommonClock
    tracer: Tracer | None
    """Where traces are asked for."""
    rehearsal: Rehearsal
    settled: set[Case] = field(default_factory=set)
    """Cases with a row."""
    measured: set[Case] = field(default_factory=set)
    """Those of them with numbers."""
    _seen: dict[Case, list[Measured]] = field(default_factory=dict)
    _wall_s: dict[Case, float] = field(default_factory=dict)
    _uncertain_s: dict[Case, float] = field(default_factory=dict)
    _changed: dict[Case, dict[str, list[int]]] = field(default_factory=dict)
    """Settings of the process that a case's own code changed and that were put back, and the ranks that saw it."""

    def __post_init__(self) -> None:
        self.settled |= set(self.rehearsal.finished)
        self.measured |= {case for case, row in self.rehearsal.finished.items() if row.status == OK}

    def set_aside(self, case: Case, reason: str) -> None:
        """Settle a case without trying it again."""
        self._close(case, replace(self._blank(case, self._trial(case, 1)), status=FAILED, reason=reason))

    def visit(self, case: Case, visits: int, *, last: bool) -> None:
        """Measure one of the case's visits; settle it with the last one, or as soon as it is skipped or fails."""
        if case in self.settled:
            return
        self.rehearsal.of(case.setting, partial(self._again, visits=visits))
        self.world.control.changed = self._changed.setdefault(case, self._changed_before(case))
        started = perf_counter()
        outcome = self._outcome(case, self._trial(case, visits), last=last)
        self._wall_s[case] = self._wall_s.get(case, 0.0) + perf_counter() - started
        if outcome is not None:
            self._close(case, replace(outcome, wall_s=self._wall_s[case]))

    def _changed_before(self, case: Case) -> dict[str, list[int]]:
        """Settings that making its options and its workload's data changed, on rank 0."""
        parts = self.parts[case]
        made = [
            (f"{axis.name}.{case.options[axis.name]}", getattr(parts, axis.name).changed_settings) for axis in fields(parts)
        ]
        made.append((f"workload.{case.workload}", self.materials[parts.workload].changed_settings))
        return {f"{setting} where {name} was made": [0] for name, found in made for setting in found}

    def _close(self, case: Case, outcome: Outcome) -> None:
        self.settled.add(case)
        self.measured |= {case} if outcome.status == OK else set()
        self._seen.pop(case, None)
        if self.world.rank == 0:
            self.writer.write_outcome(case, replace(outcome, position=list(self.parts).index(case)))

    def _again(self, case: Case, row: Row, visits: int) -> Trial:
        """As it ran when it was finished, untimed."""
        trial = self._knowing_usage(self._trial(case, visits, visits - 1))
        measured = row.iterations if visits == 1 else trial.measured
        return replace(trial, measured=measured, until=UntilConfig(), exposed=False, queued=False)

    def _trial(self, case: Case, visits: int, visit: int | None = None) -> Trial:
        """With this visit's share of the iterations; earlier visits make one more where they do not come out even."""
        parts, config = self.parts[case], self.config
        seen = self._seen.get(case, [])
        visit = len(seen) if visit is None else visit
        return Trial(
            parts=parts,
            material=self.materials[parts.workload],
            world=self.world,
            asked_warm_up=config.warm_up,
            measured=config.iterations // visits + (visit < config.iterations % visits),
            until=config.until,
            exposed=config.exposed,
            queued=config.queued,
            launch_s=seen[-1].launch_s if seen else 0.0,
            seed=config.seed,
        )

    def _outcome(self, case: Case, trial: Trial, *, last: bool) -> Outcome | None:
        """What a case's own code raises fails the case; what fails beside it (a full disk) ends the rank, and so the run."""
        blank = self._blank(case, trial)
        self.state.enter("pre-flight")
        try:
            trial = self._knowing_usage(trial)
            reason = self._reason(trial)
            if reason:
                return replace(blank, status=SKIPPED, reason=reason)
            bare = self.footprint.bare(case, trial)
            measured = self._measure(case, trial)
            self.telemetry.visited(case, measured.window, last=last)
            self._seen.setdefault(case, []).append(measured)
            return self._settle(case, trial, bare, blank) if last else None
        except CaseFailedError as error:
            self.state.enter("rebuild")
            self.world.rebuild_measured()
            impossible = trial.parts.determinism.impossible(str(error))
            return replace(blank, status=SKIPPED if impossible else FAILED, reason=impossible or str(error))

    def _reason(self, trial: Trial) -> str:
        """Reason to skip the case, equal on all ranks: hosts may differ in what an option needs, as a compiler."""
        reasons = self.world.control.all_gather_text(trial.skip_reason() or "")
        if len(set(reasons)) == 1:
            return reasons[0]
        return next(f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason)

    def _knowing_usage(self, trial: Trial) -> Trial:
        """Find out what the aggregation must know. Raises CaseFailedError."""
        material = trial.material
        if not material.trains or material.sparse:  # it is skipped
            return trial
        if any(0 in trial.cut.counts(lag) for lag in range(len(material.batches))):
            self.usages.check_dense(material)
        return replace(trial, usage=self.usages.of(material, trial.cut)) if trial.parts.aggregation.in_backward else trial

    def trace(self, case: Case) -> None:
        """Trace a case that was measured. A trace that cannot be made costs the run nothing; the log says why."""
        if self.tracer is None or case not in self.measured:
            return
        tracer = self.tracer
        if not self.world.control.any(not tracer.path(case.case_id).is_file()):
            return
        self.state.enter("trace")
        self.world.control.changed = {}
        trial = self._knowing_usage(self._trial(case, 1))
        try:
            together(self.world.control, lambda: trial.trace(tracer, case.case_id))
        except CaseFailedError:
            self.world.rebuild_measured()

    def _measure(self, case: Case, trial: Trial) -> Measured:
        """One visit. The clocks are held against each other before it and after it: they drift. Raises CaseFailedError."""
        before = self.clock.offset()
        trial = replace(trial, offset=before)
        measured = together(self.world.control, lambda: self._run(case, trial))
        uncertain = self.clock.largest_uncertainty(before, self.clock.offset())
        self._uncertain_s[case] = max(uncertain, self._uncertain_s.get(case, 0.0))
        return measured

    def _run(self, case: Case, trial: Trial) -> Measured:
        if not self.config.nvtx:
            return trial.measure(self.state.enter)
        ranges = Ranges(case.case_id, trial.warm_up)
        with ranges.of_case():
            return trial.measure(self.state.enter, ranges)

    def _settle(self, case: Case, trial: Trial, bare: int, blank: Outcome) -> Outcome:
        """`trial` is that of the last visit, whose gradient is compared."""
        measured = whole(self._seen[case])
        trial = replace(trial, measured=measured.visits[-1][1])  # as many as were made, where that was left open
        made = sum(made for _, made in measured.visits)
        blank = replace(blank, iterations=made, stop_reason=measured.stopped, clock_uncertainty_s=self._uncertain_s[case])
        self.state.enter("drift")
        drifts = self.drifts.of(case, trial)
        self.state.enter("compare")
        taken = self.footprint.of(trial, measured, bare)
        peak, above, declared = taken.amax(0).tolist()
        blank = replace(blank, peak_memory_bytes=peak, above_baseline_bytes=above, declared_bytes=declared)
        devices = self.telemetry.rows(case, measured.device_memory)
        evaluated = self._evaluate(case, trial, measured, blank)
        if self.world.rank == 0:
            memory = [Memory(case.case_id, rank, *figures) for rank, figures in enumerate(taken.tolist())]
            self.writer.write("memory", case.case_id, memory)
            if devices:
                self.writer.write("devices", case.case_id, devices)
            if self.config.drift.steps:
                self.writer.write("drifts", case.case_id, drifts)
        return evaluated

    def _blank(self, case: Case, trial: Trial) -> Outcome:
        terms = trial.cut.counts()
        return Outcome(
            case_id=case.case_id,
            status=OK,
            world_size=self.world.size,
            backend=self.world.backend,
            device=self.world.device.type,
            iterations=self.config.iterations,
            warm_up=trial.warm_up,
            second_forward=trial.second_forward,
            denominator=sum(terms),
            min_rank_denominator=min(terms),
            max_rank_denominator=max(terms),
        )

    def _evaluate(self, case: Case, trial: Trial, measured: Measured, blank: Outcome) -> Outcome:
        """Compare, gather and write. What the references cost is told apart: the first case to need one pays for it."""
        started = perf_counter()
        yardsticks = self.comparisons.yardsticks(case, trial)
        apart = self.comparisons.between(yardsticks)
        referenced = perf_counter()
        compared = self.comparisons.of(case, trial, measured.gradient, yardsticks)
        ended = perf_counter()
        told = self._diagnose(case, trial, measured)
        samples, losses = self.world.control.gather(measured.seconds), self._losses(measured)
        if self.world.rank == 0:
            self.writer.write_samples(case, measured.columns, samples, measured.visits)
            self.writer.write("norms", case.case_id, compared.norms)
            self._write_verdicts(case, trial, measured, compared.rows, apart, told)
            blank = _with_norms(blank, compared, trial.cut.loss(losses) if losses else None)
        return replace(
            blank,
            num_parameters=sum(gradient.numel() for _, gradient in measured.gradient),
            gradient_bytes=sum(gradient.nbytes for _, gradient in measured.gradient),
            gradient_sha256=digest(measured.gradient).hex(),
            predicted_max_abs=apart.predicted.max_abs if apart.predicted else nan,
            predicted_relative_l2=apart.predicted.relative_l2 if apart.predicted else nan,
            reference_s=referenced - started,
            compare_s=ended - referenced,
        )

    def _losses(self, measured: Measured) -> list[float]:
        """Each rank's part of the loss, on rank 0; empty if no rank has recorded a loss."""
        sent = torch.tensor([measured.loss, measured.loss_recorded], dtype=torch.float64)
        ranks = [own.tolist() for own in self.world.control.gather(sent)]
        return [loss for loss, _ in ranks] if any(recorded for _, recorded in ranks) else []

    def _diagnose(self, case: Case, trial: Trial, measured: Measured) -> list[Finding]:
        """What fails meanwhile leaves the case as it is, without a verdict. Its rows are written, its findings returned."""
        if not self.config.diagnose:
            return []
        name = f"diagnose {case.case_id}"
        if name in self.rehearsal.aside:
            return [Finding(case.case_id, "not_diagnosed", f"{case.case_id} has no verdict: {self.rehearsal.aside[name]}", nan)]
        self.state.update(case=name)  # a death meanwhile is not the case's own
        self.state.enter("diagnose")
        try:
            known = self.comparisons.known(case, trial)
            found = together(self.world.control, lambda: self.diagnoses.of(case.key(SHARDS), trial, measured.gradient, known))
        except CaseFailedError as error:
            self.world.rebuild_measured()
            self.diagnoses.forget()
            return [Finding(case.case_id, "not_diagnosed", f"{case.case_id} has no verdict: {error}", nan)]
        finally:
            self.state.update(case=case.case_id)
        if self.world.rank == 0:
            self.writer.write_diagnosis(case, list(rows_of(found, [name for name, _ in measured.gradient])))
        return list(verdicts(case, found))

    def _write_verdicts(
        self, case: Case, trial: Trial, measured: Measured, rows: list[Discrepancy], apart: Apart, told: list[Finding]
    ) -> None:
        self.writer.write("discrepancies", case.case_id, rows)
        found = [*told, *findings(case, trial, measured, rows, apart), *changed_settings(case, self._changed[case])]
        found += self.rehearsal.findings(case)
        self.writer.write("findings", case.case_id, found)


def _with_norms(blank: Outcome, compared: Compared, loss: float | None) -> Outcome:
    """Add loss, norms and their references. `loss`: None if no rank has recorded one; its reference is left out, too."""
    whole, *_ = compared.norms
    return replace(
        blank,
        loss=nan if loss is None else loss,
        reference_loss=nan if loss is None else compared.reference_loss,
        gradient_norm=whole.norm,
        reference_gradient_norm=whole.reference_norm,
    )


def whole(visits: list[Measured]) -> Measured:
    """Several visits as one: the samples of each in turn, the memory of the one where it was most, the last one's gradient."""
    columns, seconds = _with_numbers(visits[-1].columns, torch.cat([visit.seconds for visit in visits]))
    return replace(
        visits[-1],
        columns=columns,
        seconds=seconds,
        not_queued="" if QUEUED_STEP in columns else visits[-1].not_queued,
        visits=[counts for visit in visits for counts in visit.visits],
        peak_memory_bytes=max(visit.peak_memory_bytes for visit in visits),
        taken_memory_bytes=max(visit.taken_memory_bytes for visit in visits),
        device_memory=_together([visit.device_memory for visit in visits]),
        tolerated_warnings=sorted({warning for visit in visits for warning in visit.tolerated_warnings}),
    )


def _with_numbers(columns: list[tuple[str, str]], seconds: torch.Tensor) -> tuple[list[tuple[str, str]], torch.Tensor]:
    """Leave out the columns without any number, as of a host that never ran ahead of the device; equal on all ranks.

    Without a step of that clock its other columns, as those of the step without communication, are left out too.
    """
    there = [place for place, finite in enumerate(seconds.isfinite().any(0).tolist()) if finite]
    stepped = any(columns[place] == QUEUED_STEP for place in there)
    kept = [place for place in there if stepped or columns[place][1] != CUDA_QUEUED]
    return [columns[place] for place in kept], seconds[:, kept]


def _together(visits: list[DeviceMemory | None]) -> DeviceMemory | None:
    known = [memory for memory in visits if memory is not None]
    if not known:
        return None
    return DeviceMemory(max(one.reserved_bytes for one in known), sum(one.alloc_retries for one in known))
