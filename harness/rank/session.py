"""The session of one rank: from the run directory's configuration to the last case's row."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.distributed import Store

from harness.axes.workload.base import Workload
from harness.probes.base import Machine
from harness.rank.assemble import Parts, assemble, assemble_probes
from harness.rank.casework import CaseWork
from harness.rank.common_clock import CommonClock
from harness.rank.compare import Comparisons
from harness.rank.drift import BATCHES, Drifts
from harness.rank.environment.describe import describe
from harness.rank.environment.watch import Watch
from harness.rank.footprint import Footprint
from harness.rank.gradient_store import GradientStore
from harness.rank.inquiry import Inquiry, machine_of
from harness.rank.material import Material, check_equal_on_ranks, prepare
from harness.rank.process_group import World
from harness.rank.profiling import Tracer
from harness.rank.reference import References
from harness.rank.usage import Usages
from harness.rank.writer import Writer
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import ordered_cases
from harness.schema.rank_state import RankState
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
    cases: CaseWork
    inquiries: list[Inquiry]
    machine: Machine
    writer: Writer
    asked: int = 0
    """Probes that have answered."""

    @classmethod
    def open(cls, run_dir: RunDir, world: World, state: RankState, config: BenchmarkConfig, launch: int) -> "Session":
        """Assemble every case, build every workload, write environment.json. Raises RefusedError: nothing is measured yet."""
        parts = assemble(config, ordered_cases(config, launch))
        by_workload = {part.workload: case.workload for case, part in parts.items()}
        inquiries = [Inquiry(name, probe) for name, probe in assemble_probes(config).items() if not launch]
        batches = max([min(BATCHES, config.drift.steps), *(part.fault.batches for part in parts.values())])
        materials = {w: prepare(w, name, config.seed, config.global_batch_size, batches) for w, name in by_workload.items()}
        for material in materials.values():
            check_equal_on_ranks(material, world.control)
            _check_samples(material, world.size)
        named = _named(parts, materials)
        described = describe(world, named)
        if world.rank == 0 and not launch:
            run_dir.write_environment(described)
        store = GradientStore(run_dir.scratch(world.rank))
        references = References(store, world.control, world.device, config.seed)
        comparisons = Comparisons(world.control, store, references, config.single_rank, together=config.order == "matrix")
        writer = Writer(run_dir, launch)
        cases = CaseWork(
            config=config,
            world=world,
            state=state,
            parts=parts,
            materials=materials,
            comparisons=comparisons,
            drifts=Drifts(config.drift, world.control, store),
            writer=writer,
            usages=Usages(world.control, world.device),
            footprint=Footprint(world.control),
            clock=CommonClock.open(world.control),
            tracer=Tracer(run_dir, world) if config.profile and not launch else None,
        )
        return cls(config, world, state, cases, inquiries, machine_of(world, config, named.items()), writer)

    def run(self, progress: Progress) -> None:
        """Every case, then every probe, in order; then, where they are asked for, the traces."""
        rounds = self.config.rounds if self.config.order == "interleaved" else 1
        visits = [(case, turn == rounds - 1) for turn in range(rounds) for case in self.cases.parts]
        work = [(case.case_id, partial(self.cases.visit, case, rounds, last=last)) for case, last in visits]
        work += [(f"probe {inquiry.name}", partial(self.run_probe, inquiry)) for inquiry in self.inquiries]
        work += [(f"trace {case.case_id}", partial(self.cases.trace, case)) for case in self.cases.parts if self.config.profile]
        total = len(self.cases.parts) + len(self.inquiries)
        for name, call in work:
            done = len(self.cases.settled) + self.asked
            progress(done, total, name)
            self.state.update(case=name, done=done)
            call()
        self.state.update(case="", done=total)

    def run_probe(self, inquiry: Inquiry) -> None:
        """One probe to its rows."""
        self.state.enter("ask")
        inquiry.run(self.world, self.machine)
        if self.world.rank == 0:
            self.writer.write_probe(inquiry.name, inquiry.asked, inquiry.seen)
        self.asked += 1


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


def run_session(
    run_dir: RunDir, store: Store, rank: int, size: int, state: RankState, progress: Progress, launch: int = 0
) -> None:
    """All that a rank does for one launch of a run. Raises RefusedError when it cannot begin."""
    config = run_dir.config()
    torch.set_num_threads(config.threads_per_rank)
    state.enter("join")
    world = World.open(config, store, rank, size)
    watch = Watch(world, launch)
    state.enter("assemble")
    session = Session.open(run_dir, world, state, config, launch)
    watch.note(run_dir)  # a run that is cut short tells what was going on when it began
    session.run(progress)
    watch.note(run_dir)
    if rank == 0:
        run_dir.remove_scratch()
    world.close()  # last: the ranks end together


def silent(done: int, total: int, case_id: str) -> None:
    """A Progress that says nothing."""
