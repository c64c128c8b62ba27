"""The session of one rank: from the run directory's configuration to the last case's row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from time import perf_counter

import torch
from torch.distributed import Store

from harness.axes.workload.base import Workload
from harness.probes.base import Machine
from harness.probes.bits import digest
from harness.rank.agreement import CaseFailedError, together
from harness.rank.assemble import Parts, assemble, assemble_probes
from harness.rank.compare import Apart, Comparisons
from harness.rank.drift import BATCHES, Drifts
from harness.rank.environment.describe import describe
from harness.rank.environment.watch import Watch
from harness.rank.findings import findings
from harness.rank.footprint import Footprint
from harness.rank.gradient_store import GradientStore
from harness.rank.inquiry import Inquiry, machine_of
from harness.rank.material import Material, check_equal_on_ranks, prepare
from harness.rank.process_group import World
from harness.rank.reference import References
from harness.rank.trial import Measured, Trial
from harness.rank.usage import Usages
from harness.rank.writer import Writer
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases
from harness.schema.rank_state import RankState
from harness.schema.record import FAILED, OK, SKIPPED, Discrepancy, Outcome
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir

Progress = Callable[[int, int, str], None]
"""Told (cases finished, cases in all, the one that begins)."""


@dataclass
class Session:
    """What one rank holds while it works through the matrix."""

    config: BenchmarkConfig
    world: World
    state: RankState
    parts: dict[Case, Parts]
    materials: dict[Workload, Material]
    comparisons: Comparisons
    drifts: Drifts
    inquiries: list[Inquiry]
    machine: Machine
    writer: Writer
    usages: Usages
    footprint: Footprint

    @classmethod
    def open(cls, run_dir: RunDir, world: World, state: RankState, config: BenchmarkConfig) -> "Session":
        """Assemble every case, build every workload, write environment.json. Raises RefusedError: nothing is measured yet."""
        parts = assemble(config, expand_cases(config))
        by_workload = {part.workload: case.workload for case, part in parts.items()}
        inquiries = [Inquiry(name, probe) for name, probe in assemble_probes(config).items()]
        batches = max([min(BATCHES, config.drift.steps), *(part.fault.batches for part in parts.values())])
        materials = {w: prepare(w, name, config.seed, config.global_batch_size, batches) for w, name in by_workload.items()}
        for material in materials.values():
            check_equal_on_ranks(material, world.control)
            _check_samples(material, world.size)
        named = _named(parts, materials)
        described = describe(world, named)
        if world.rank == 0:
            run_dir.write_environment(described)
        store = GradientStore(run_dir.scratch(world.rank))
        references = References(store, world.control, world.device, config.seed)
        comparisons = Comparisons(world.control, store, references, config.single_rank)
        drifts = Drifts(config.drift, world.control, store)
        machine = machine_of(world, config, named.items())
        return cls(
            config=config,
            world=world,
            state=state,
            parts=parts,
            materials=materials,
            comparisons=comparisons,
            drifts=drifts,
            inquiries=inquiries,
            machine=machine,
            writer=Writer(run_dir),
            usages=Usages(world.control, world.device),
            footprint=Footprint(world.control),
        )

    def run(self, progress: Progress) -> None:
        """Every case, then every probe, in order."""
        work: list[tuple[str, Callable[[], None]]] = [(case.case_id, partial(self.run_case, case)) for case in self.parts]
        work += [(f"probe {inquiry.name}", partial(self.run_probe, inquiry)) for inquiry in self.inquiries]
        for done, (name, call) in enumerate(work):
            progress(done, len(work), name)
            self.state.update(case=name, done=done)
            call()
        self.state.update(case="", done=len(work))

    def run_probe(self, inquiry: Inquiry) -> None:
        """One probe to its rows."""
        self.state.enter("ask")
        inquiry.run(self.world, self.machine)
        if self.world.rank == 0:
            self.writer.write_probe(inquiry.name, inquiry.asked, inquiry.seen)

    def run_case(self, case: Case) -> None:
        """One case to its row in `cases`: ok, skipped or failed."""
        started = perf_counter()
        outcome = self._outcome(case, self._trial(case))
        if self.world.rank == 0:
            self.writer.write_outcome(case, replace(outcome, wall_s=perf_counter() - started))

    def _trial(self, case: Case) -> Trial:
        parts, config = self.parts[case], self.config
        return Trial(parts, self.materials[parts.workload], self.world, config.warm_up, config.iterations, config.seed)

    def _outcome(self, case: Case, trial: Trial) -> Outcome:
        """What a case's own code raises fails the case; what fails beside it (a full disk) ends the rank, and so the run."""
        blank = self._blank(case, trial)
        try:
            if trial.material.trains and trial.parts.aggregation.in_backward:
                trial = replace(trial, usage=self.usages.of(trial.material, trial.cut))
            reason = trial.skip_reason()
            if reason:
                return replace(blank, status=SKIPPED, reason=reason)
            bare = self.footprint.bare(case, trial)
            measured = together(self.world.control, lambda: trial.measure(self.state.enter))
            self.state.enter("drift")
            drifts = self.drifts.of(case, trial)
            self.state.enter("compare")
            evaluated = self._evaluate(case, trial, measured, self.footprint.of(trial, measured, bare, blank))
            if self.world.rank == 0 and self.config.drift.steps:
                self.writer.write_drifts(case, drifts)
            return evaluated
        except CaseFailedError as error:
            self.world.rebuild_measured()
            return replace(blank, status=FAILED, reason=str(error))

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
        rows = self.comparisons.of(case, trial, measured.gradient, yardsticks)
        compared = perf_counter()
        samples = self.world.control.gather(measured.seconds)
        if self.world.rank == 0:
            self.writer.write_samples(case, measured.columns, samples, trial.warm_up)
            self._write_verdicts(case, trial, measured, rows, apart)
        return replace(
            blank,
            num_parameters=sum(gradient.numel() for _, gradient in measured.gradient),
            gradient_bytes=sum(gradient.nbytes for _, gradient in measured.gradient),
            gradient_sha256=digest(measured.gradient).hex(),
            predicted_max_abs=apart.predicted.max_abs if apart.predicted else nan,
            predicted_relative_l2=apart.predicted.relative_l2 if apart.predicted else nan,
            reference_s=referenced - started,
            compare_s=compared - referenced,
        )

    def _write_verdicts(self, case: Case, trial: Trial, measured: Measured, rows: list[Discrepancy], apart: Apart) -> None:
        self.writer.write_discrepancies(case, rows)
        self.writer.write_findings(case, list(findings(case, trial, measured, rows, apart)))


def _check_samples(material: Material, world_size: int) -> None:
    if len(material.batch) < world_size:
        raise RefusedError(
            f"workload.{material.name}.samples={len(material.batch)} is smaller than the world size {world_size}: "
            "some ranks would have no sample"
        )


def _named(parts: dict[Case, Parts], materials: dict[Workload, Material]) -> dict[str, Material]:
    """Materials by their workload, and by those of its parameters that vary: `mlp_digits samples=64`."""
    asked = {part.workload: case for case, part in parts.items()}
    return {_name(case, list(asked.values())): materials[workload] for workload, case in asked.items()}


def _name(case: Case, others: list[Case]) -> str:
    same = [other for other in others if other.workload == case.workload]
    own = [(key, value) for key, value in case.parameters if key.startswith("workload.")]
    varying = [(key, value) for key, value in own if len({dict(other.parameters).get(key) for other in same}) > 1]
    return " ".join([case.workload, *(f"{key.removeprefix('workload.')}={value}" for key, value in varying)])


def run_session(run_dir: RunDir, store: Store, rank: int, size: int, state: RankState, progress: Progress) -> None:
    """All that a rank does for a run. Raises RefusedError when the run cannot begin."""
    config = run_dir.config()
    torch.set_num_threads(config.threads_per_rank)
    world = World.open(config, store, rank, size)
    watch = Watch(world)
    session = Session.open(run_dir, world, state, config)
    watch.note(run_dir)  # a run that is cut short tells what was going on when it began
    session.run(progress)
    watch.note(run_dir)
    if rank == 0:
        run_dir.remove_scratch()
    world.close()  # last: the ranks end together


def silent(done: int, total: int, case_id: str) -> None:
    """A Progress that says nothing."""
