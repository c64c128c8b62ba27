"""The session of one rank: from the run directory's configuration to the last case's row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch.distributed import Store

from harness.axes.workload.base import Workload
from harness.rank import environment
from harness.rank.agreement import CaseFailedError, together
from harness.rank.assemble import Parts, assemble
from harness.rank.compare import Comparisons
from harness.rank.findings import findings
from harness.rank.gradient_store import GradientStore
from harness.rank.material import Material, check_equal_on_ranks, prepare
from harness.rank.process_group import World
from harness.rank.reference import References
from harness.rank.trial import Measured, Trial
from harness.rank.writer import Writer
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases
from harness.schema.rank_state import RankState
from harness.schema.record import FAILED, OK, SKIPPED, Discrepancy, Outcome
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
    writer: Writer

    @classmethod
    def open(cls, run_dir: RunDir, world: World, state: RankState, config: BenchmarkConfig) -> "Session":
        """Assemble every case, build every workload, write environment.json. Raises RefusedError: nothing is measured yet."""
        parts = assemble(config, expand_cases(config))
        by_workload = {part.workload: case.workload for case, part in parts.items()}
        materials = {w: prepare(w, name, config.seed, config.global_batch_size) for w, name in by_workload.items()}
        for material in materials.values():
            check_equal_on_ranks(material, world.control)
        described = environment.describe(world, materials.values())
        if world.rank == 0:
            run_dir.write_environment(described)
        store = GradientStore(run_dir.scratch(world.rank))
        comparisons = Comparisons(world.control, store, References(store, world.control, world.device))
        return cls(config, world, state, parts, materials, comparisons, Writer(run_dir))

    def run(self, progress: Progress) -> None:
        """Every case, in order."""
        for done, case in enumerate(self.parts):
            progress(done, len(self.parts), case.case_id)
            self.state.update(case=case.case_id, done=done)
            self.run_case(case)
        self.state.update(case="", done=len(self.parts))

    def run_case(self, case: Case) -> None:
        """One case to its row in `cases`: ok, skipped or failed."""
        started = perf_counter()
        outcome = self._outcome(case, self._trial(case))
        if self.world.rank == 0:
            self.writer.write_outcome(case, replace(outcome, wall_s=perf_counter() - started))

    def _trial(self, case: Case) -> Trial:
        parts = self.parts[case]
        material = self.materials[parts.workload]
        return Trial(parts, material, parts.sharding.shards(material.terms, self.world.size), self.world, self.config.seed)

    def _outcome(self, case: Case, trial: Trial) -> Outcome:
        """What a case's own code raises fails the case; what fails beside it (a full disk) ends the rank, and so the run."""
        blank = self._blank(case, trial)
        reason = trial.skip_reason()
        if reason:
            return replace(blank, status=SKIPPED, reason=reason)
        try:
            measured = together(self.world.control, lambda: trial.measure(*self._counts, self.state.enter))
            self.state.enter("compare")
            return self._evaluate(case, trial, measured, blank)
        except CaseFailedError as error:
            self.world.rebuild_measured()
            return replace(blank, status=FAILED, reason=str(error))

    @property
    def _counts(self) -> tuple[int, int]:
        return self.config.warm_up, self.config.iterations

    def _blank(self, case: Case, trial: Trial) -> Outcome:
        terms = trial.shard_terms
        return Outcome(
            case_id=case.case_id,
            status=OK,
            world_size=self.world.size,
            backend=self.world.backend,
            device=self.world.device.type,
            iterations=self.config.iterations,
            warm_up=self.config.warm_up,
            denominator=sum(terms),
            min_rank_denominator=min(terms),
            max_rank_denominator=max(terms),
        )

    def _evaluate(self, case: Case, trial: Trial, measured: Measured, blank: Outcome) -> Outcome:
        """Compare, gather and write. What the references cost is told apart: the first case to need one pays for it."""
        started = perf_counter()
        apart = self.comparisons.between_references(case, trial)
        referenced = perf_counter()
        rows = self.comparisons.of(case, trial, measured.gradient)
        compared = perf_counter()
        samples = self.world.control.gather(measured.seconds)
        peaks = self.world.control.gather(torch.tensor(measured.peak_memory_bytes))
        if self.world.rank == 0:
            self.writer.write_samples(case, measured.columns, samples, self.config.warm_up)
            self._write_verdicts(case, trial, measured, rows, apart)
        return replace(
            blank,
            num_parameters=sum(gradient.numel() for _, gradient in measured.gradient),
            gradient_bytes=sum(gradient.nbytes for _, gradient in measured.gradient),
            peak_memory_bytes=max(map(int, peaks), default=0),
            reference_s=referenced - started,
            compare_s=compared - referenced,
        )

    def _write_verdicts(
        self, case: Case, trial: Trial, measured: Measured, rows: list[Discrepancy], references_apart: float
    ) -> None:
        self.writer.write_discrepancies(case, rows)
        self.writer.write_findings(case, list(findings(case, trial, measured, rows, references_apart)))


def run_session(run_dir: RunDir, store: Store, rank: int, size: int, state: RankState, progress: Progress) -> None:
    """All that a rank does for a run. Raises RefusedError when the run cannot begin."""
    config = run_dir.config()
    torch.set_num_threads(config.threads_per_rank)
    world = World.open(config, store, rank, size)
    Session.open(run_dir, world, state, config).run(progress)
    world.close()
    if rank == 0:
        run_dir.remove_scratch()


def silent(done: int, total: int, case_id: str) -> None:
    """A Progress that says nothing."""
