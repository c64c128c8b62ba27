"""The session of one rank: from the run directory's configuration to the last case's row."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.distributed import Store

from harness.axes.workload.base import Workload
from harness.probes.base import Machine
from harness.rank.assemble import assemble, assemble_probes
from harness.rank.casework import CaseWork
from harness.rank.common_clock import CommonClock
from harness.rank.compare import Comparisons
from harness.rank.diagnose import Diagnoses
from harness.rank.drift import BATCHES, Drifts
from harness.rank.environment.changes import changes
from harness.rank.environment.describe import describe
from harness.rank.environment.watch import Watch
from harness.rank.footprint import Footprint
from harness.rank.foreign_files import direct_files, dump_flight
from harness.rank.gradient_store import GradientStore
from harness.rank.guard import Guard
from harness.rank.inquiry import Inquiry, machine_of
from harness.rank.kept import Kept
from harness.rank.material import Material, check_equal_on_ranks, prepare
from harness.rank.nvtx import check_nvtx
from harness.rank.preflight import allow_sockets, check_alike, check_interfaces, check_sum
from harness.rank.process_group import World, choose_backend, choose_device
from harness.rank.profiling import Tracer
from harness.rank.progress import take_up
from harness.rank.reference import References
from harness.rank.rehearsal import Rehearsal
from harness.rank.rescue import Rescue
from harness.rank.rig import Parts
from harness.rank.telemetry import Telemetry
from harness.rank.usage import Usages
from harness.rank.writer import Writer
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig, figures_digest
from harness.schema.matrix import ordered_cases
from harness.schema.rank_state import RankState
from harness.schema.record import FAILED, Asked
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir

ShowProgress = Callable[[int, int, str], None]
"""Called with (cases finished, cases in all, the one that begins)."""
Join = Callable[[], tuple[Store, int, int]]
"""To the store that all ranks share, this rank, and the world size."""


@dataclass(frozen=True)
class Order:
    """What of a run is to be done."""

    launch: int = 0
    retry: bool = False
    """Whether what failed is done again."""
    accept: bool = False
    """Whether the environment may be another one than when the run began."""


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

    aside: dict[str, str] = field(default_factory=dict)
    """Cases and probes that are not to be tried again, and why."""

    @classmethod
    def open(cls, run_dir: RunDir, world: World, state: RankState, config: BenchmarkConfig, order: Order) -> "Session":
        """Assemble every case, build every workload, write environment.json. Raises RefusedError: nothing is measured yet."""
        launch = order.launch
        parts = assemble(ordered_cases(config, launch))
        by_workload = {part.workload: case.workload for case, part in parts.items()}
        inquiries = [Inquiry(name, probe) for name, probe in assemble_probes(config).items() if not launch]
        batches = max([min(BATCHES, config.drift.steps), *(part.fault.batches for part in parts.values())])
        materials = {w: prepare(w, name, config.seed, config.global_batch_size, batches) for w, name in by_workload.items()}
        for material in materials.values():
            check_equal_on_ranks(material, world.control)
            _check_samples(material, world.size)
        named = _named(parts, materials)
        described = {**describe(world, named), "config_sha256": figures_digest(config)}
        _write_environment(run_dir, world, described, order)
        state.enter("resume")  # rank 0 alone reads; the others wait for it
        done = take_up(run_dir, config, launch, world.control, retry=order.retry)
        waiting = [inquiry for inquiry in inquiries if inquiry.name not in done.probes]
        writer = Writer(run_dir, launch, config)
        if order.retry and world.rank == 0:
            writer.renew_files()
        for inquiry in waiting:
            inquiry.take_up(Kept(run_dir, inquiry.name, writer), world.control)
        state.enter("assemble")
        places = {case: place for place, case in enumerate(parts)}
        store = GradientStore(run_dir.scratch(world.rank), run_dir.path)
        references = References(store, world.control, world.device, config.seed)
        comparisons = Comparisons(
            control=world.control,
            store=store,
            references=references,
            single_rank=config.single_rank,
            order=places,
            held=done.pairs,
            together=config.order == "matrix",
        )
        drifts = Drifts(config.drift, world.control, store, places, done.pairs)
        finished = {case: done.cases[case.case_id] for case in parts if case.case_id in done.cases}
        aside = _aside(run_dir, world)
        cases = CaseWork(
            config=config,
            world=world,
            state=state,
            parts=parts,
            materials=materials,
            comparisons=comparisons,
            diagnoses=Diagnoses(store, references),
            drifts=drifts,
            writer=writer,
            usages=Usages(world.control, world.device),
            footprint=Footprint(world.control),
            telemetry=Telemetry.open(world, config.sample_hz),
            clock=CommonClock.open(world.control),
            tracer=Tracer(run_dir, world) if config.profile and not launch else None,
            rehearsal=Rehearsal(world, state, comparisons, drifts, finished, aside),
        )
        machine = machine_of(world, config, named.items())
        return cls(config, world, state, cases, waiting, machine, writer, len(done.probes), aside)

    def run(self, progress: ShowProgress) -> None:
        """Every case, then every probe, in order; then, where they are asked for, the traces."""
        rounds = self.config.rounds if self.config.order == "interleaved" else 1
        total = len(self.cases.parts) + len(self.inquiries) + self.asked
        self._set_aside()
        visits = [(case, turn == rounds - 1) for turn in range(rounds) for case in self.cases.parts]
        work = [(case.case_id, partial(self.cases.visit, case, rounds, last=last)) for case, last in visits]
        work += [(f"probe {inquiry.name}", partial(self.run_probe, inquiry)) for inquiry in self.inquiries]
        work += [(f"trace {case.case_id}", partial(self.cases.trace, case)) for case in self.cases.parts if self.config.profile]
        try:
            self._work_through(work, total, progress)
        finally:
            self.cases.telemetry.close()

    def _work_through(self, work: Sequence[tuple[str, Callable[[], None]]], total: int, progress: ShowProgress) -> None:
        for name, call in work:
            self.world.check_default()  # the case that failed has its row, and is the state's
            done = len(self.cases.settled) + self.asked
            progress(done, total, name)
            self.state.update(case=name, done=done)
            call()
        self.state.update(case="", done=total)

    def _set_aside(self) -> None:
        """What killed the world twice gets its rows, and is left."""
        for case in self.cases.parts:
            if case.case_id in self.aside and case not in self.cases.settled:
                self.cases.set_aside(case, self.aside[case.case_id])
        for inquiry in [inquiry for inquiry in self.inquiries if f"probe {inquiry.name}" in self.aside]:
            self.inquiries.remove(inquiry)
            inquiry.asked.append(Asked(inquiry.name, "", FAILED, self.aside[f"probe {inquiry.name}"], 0.0))
            self._write(inquiry)

    def run_probe(self, inquiry: Inquiry) -> None:
        """One probe to its rows."""
        self.state.enter("ask")
        inquiry.run(self.world, self.machine)
        self._write(inquiry)

    def _write(self, inquiry: Inquiry) -> None:
        if self.world.rank == 0:
            self.writer.write_probe(inquiry.name, inquiry.asked, inquiry.seen)
            self.writer.drop_parts(inquiry.name)
        self.asked += 1


def _write_environment(run_dir: RunDir, world: World, described: dict[str, Any], order: Order) -> None:
    """What has changed since the run began is noted. Raises RefusedError, on all ranks, where a person goes on elsewhere."""
    before = run_dir.environment() if world.rank == 0 else {}
    found = changes(before, described) if before else []
    told: list[str] = json.loads(world.control.all_gather_text(json.dumps(found))[0])
    if told and order.retry and not order.accept:
        lines = "\n".join(f"  {line}" for line in told)
        raise RefusedError(f"the environment is not the one that the run began in; try --accept-changes to continue:\n{lines}")
    if world.rank == 0:
        kept = {key: before[key] for key in ("conditions", "changed") if key in before}
        noted = {"changed": [*before.get("changed", []), {"launch": order.launch, "lines": told}]} if told else {}
        run_dir.write_environment(described | kept | noted)


def _aside(run_dir: RunDir, world: World) -> dict[str, str]:
    told: dict[str, str] = json.loads(world.control.all_gather_text(json.dumps(run_dir.ranks.aside()))[0])
    return told


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
    values = [other.parameters_of("workload") for other in same]
    own = case.parameters_of("workload").items()
    varying = [f"{key}={value}" for key, value in own if len({one.get(key) for one in values}) > 1]
    return " ".join([case.workload, *varying])


def run_session(run_dir: RunDir, join: Join, state: RankState, guard: Guard, progress: ShowProgress, order: Order) -> None:
    """All that a rank does for one launch of a run. Raises RefusedError when it cannot begin."""
    config = run_dir.config()
    torch.set_num_threads(config.threads_per_rank)
    state.enter("join")
    device = choose_device(config, int(os.environ["LOCAL_RANK"]))
    nccl = choose_backend(config, device) == "nccl"
    check_nvtx(device, nvtx=config.nvtx)
    check_interfaces(nccl=nccl)
    store, rank, size = join()
    if nccl:
        direct_files(run_dir, rank, order.launch, log=config.nccl_debug)
        guard.dump = partial(dump_flight, run_dir, rank)
    allow_sockets(size)
    world = World.open(config, store, rank, size, check=check_alike, met=lambda line: guard.miss(line, config.deadline_s))
    guard.heed(world.control.waiting)
    guard.rescue(Rescue.of(world))
    world.control.where = lambda: f"on {state.status.host}, in phase {state.phase}"
    check_sum(world)
    watch = Watch(world, order.launch)
    state.enter("assemble")
    session = Session.open(run_dir, world, state, config, order)
    watch.note(run_dir)  # a run that is cut short tells what was going on when it began
    session.run(progress)
    watch.note(run_dir)
    if world.rank == 0:
        run_dir.remove_scratch()
    guard.rest()
    world.close()  # last: the ranks end together


def silent(done: int, total: int, case_id: str) -> None:
    """A ShowProgress that shows nothing."""
