"""Forty defects, each planted in one function of harness/ or launch/; `make mutants` asks if `make test` fails for each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted defect: in `function`, `old` becomes `new`."""

    name: str
    function: str
    """Qualified, without the module: the defect survives a move of its file."""
    old: str
    """Stands exactly once in the function."""
    new: str
    defect: str
    """Consequence of the change."""


MUTANTS = (
    # harness/axes
    Mutant(
        "overlap-keeps-ready",
        "OverlapExchange.finish",
        "self._ready.clear()",
        "pass",
        "From the second iteration on, all-reduces start before the gradients of that iteration are there.",
    ),
    Mutant(
        "empty-rank-loses-samples",
        "EmptyRankSharding.shards",
        "max(1, world_size - 1)",
        "world_size",
        "The batch is cut for the empty rank too, so that the samples of the last part belong to nobody.",
    ),
    Mutant(
        "clip-by-l1-norm",
        "ByNormClip.clipping",
        "clip_grad_norm_(parameters, self._max_norm)",
        "clip_grad_norm_(parameters, self._max_norm, norm_type=1.0)",
        "The gradient is clipped by its L1 norm instead of its L2 norm.",
    ),
    Mutant(
        "missing-zero-grad-first-power",
        "MissingZeroGradFault.expected",
        "range(situation.iteration)",
        "range(1, situation.iteration + 1)",
        "The theory's series begins with c instead of 1, which is right only where ranks are averaged.",
    ),
    Mutant(
        "micro-batches-weigh-alike",
        "MicroBatchReduction.local_gradient",
        "sum(work.terms[part]) / work.denominator",
        "(part.stop - part.start) / len(work.batch) * work.count / work.denominator",
        "A micro-batch is weighted by its samples instead of its tokens.",
    ),
    Mutant(
        "determinism-not-reset",
        "DeterministicDeterminism.computing",
        "torch.use_deterministic_algorithms(before, warn_only=warned)",
        "torch.use_deterministic_algorithms(True)",
        "Deterministic algorithms stay on for the cases that come after.",
    ),
    # harness/numerics
    Mutant(
        "median-interval-one-sided",
        "_rank",
        "_ONE_IN * tail <= 2**n",
        "_ONE_IN // 2 * tail <= 2**n",
        "Each tail of the median's interval has 5 % instead of 2.5 %, so that the interval is too narrow.",
    ),
    Mutant(
        "tree-height-of-shortest-way",
        "height",
        "max(map(height, tree))",
        "min(map(height, tree))",
        "The height of a summation tree is that of its shortest way instead of its longest.",
    ),
    Mutant(
        "nan-lost-in-max-abs",
        "Discrepancy.__add__",
        "_nan_max(self.max_abs, other.max_abs)",
        "max(self.max_abs, other.max_abs)",
        "A NaN of one part is lost from the largest difference of the whole gradient.",
    ),
    Mutant(
        "unidentifiable-weights-told",
        "effective_weights",
        "present & (outside < _CLEAR)",
        "present",
        "Weights that the vectors do not determine get a number instead of NaN.",
    ),
    # harness/probes
    Mutant(
        "crafted-check-last-chunk",
        "check",
        "wrong += len(differ)",
        "wrong = len(differ)",
        "The check of a collective's result forgets wrong elements of all chunks but the last.",
    ),
    Mutant(
        "setting-of-torch-leaks",
        "_held",
        "write(before)",
        "write(value)",
        "The repeatability probe leaves its thread count, and deterministic algorithms, switched on.",
    ),
    Mutant(
        "absent-rank-taken-for-lost",
        "_without",
        "facts.total - facts.counts[rank]",
        "facts.total",
        "The hypothesis of an absent rank leaves the weights of the other ranks as they are, as that of a lost rank does.",
    ),
    Mutant(
        "repeats-on-own-rank-only",
        "explain",
        "not control.any(not seen.repeats)",
        "seen.repeats",
        "A rank whose step does not repeat its bits goes unnoticed on the other ranks.",
    ),
    Mutant(
        "permutation-floor-not-averaged",
        "noise_of",
        "seen * scale / max(made, 1)",
        "seen * scale",
        "The permutation floor adds up the squares of all permutations instead of averaging them.",
    ),
    # harness/rank
    Mutant(
        "clock-offset-sign",
        "ping",
        "(sent + back) / 2 - theirs",
        "theirs - (sent + back) / 2",
        "The clock offset to rank 0 has the wrong sign.",
    ),
    Mutant(
        "guard-ignores-launcher",
        "Guard.start",
        "(os.getppid(), launcher_pid)",
        "(os.getppid(),)",
        "Ranks go on when their launcher is killed, as long as torchrun lives.",
    ),
    Mutant(
        "refused-connection-is-no-death",
        "_ask",
        "return Answer(DEAD)",
        "return Answer(UNREACHABLE)",
        "A rank that is dead is found to be unreachable, as if the link to its host were down.",
    ),
    Mutant(
        "resume-keeps-failed-cases",
        "_read",
        'not rows or (retry and any(row["status"] == FAILED for row in rows))',
        "not rows",
        "A run that goes on does not try failed cases and probes again.",
    ),
    Mutant(
        "unequal-models-not-refused",
        "Session.open",
        "check_equal_on_ranks(material, world.control)",
        "pass",
        "Ranks that begin with different parameters or data are measured instead of refused.",
    ),
    Mutant(
        "later-warm-ups-not-marked",
        "sample_rows",
        "place < counts[0] for counts in visits for place in range(sum(counts))",
        "place < visits[0][0] for place in range(sum(map(sum, visits)))",
        "The warm-ups of all visits but the first are marked as measured iterations.",
    ),
    Mutant(
        "drift-on-one-batch",
        "Trial.train",
        "(step - 1) % len(rig.phases)",
        "0",
        "All optimizer steps of a drift take the same batch.",
    ),
    Mutant(
        "memory-without-baseline",
        "Footprint.of",
        "measured.taken_memory_bytes - bare",
        "measured.peak_memory_bytes - bare",
        "Memory above the bare step includes what the process held before the case began.",
    ),
    Mutant(
        "communication-dtype-not-sent",
        "_cast_and_sum",
        "gradient.to(dtype) for gradient in gradients",
        "gradient.to(dtype).to(gradient.dtype) for gradient in gradients",
        "Gradients are rounded to the communication dtype, but travel and are summed in their own.",
    ),
    # harness/schema
    Mutant(
        "half-written-file-renamed",
        "writing",
        "os.unlink(part, dir_fd=folder)",
        "os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)",
        "A file whose writing fails takes its final name half written.",
    ),
    Mutant(
        "sweep-in-step",
        "variants",
        "itertools.product(*lists.values())",
        "(zip(*lists.values()) if lists else [()])",
        "Two swept parameters advance together instead of making every combination.",
    ),
    # harness/report
    Mutant(
        "fastest-rank-reported",
        "Times.slowest",
        "np.fmax.reduce(seconds, axis=1)",
        "np.fmin.reduce(seconds, axis=1)",
        "The time of an iteration is that of the fastest rank instead of the slowest.",
    ),
    Mutant(
        "median-over-pooled-iterations",
        "_summary",
        "median=float(np.median(medians))",
        "median=float(np.median(pooled))",
        "The median of several launches is that of all their iterations instead of that of their medians.",
    ),
    Mutant(
        "ratio-interval-off-by-one",
        "interval",
        "pairs[place - 1]",
        "pairs[place]",
        "The lower end of the ratio's interval is one ordered ratio too high.",
    ),
    Mutant(
        "gate-broken-by-upper-end",
        "outcome",
        "BROKEN if low > limit",
        "BROKEN if high > limit",
        "A gate is broken as soon as the interval reaches beyond the limit, where the launches cannot tell.",
    ),
    Mutant(
        "busbw-not-divided-by-ranks",
        "collectives",
        "(ranks - 1) / ranks",
        "(ranks - 1)",
        "Bus bandwidth is as many times too high as there are ranks.",
    ),
    Mutant(
        "export-distance-of-rank-0",
        "distances",
        "rows.launch], sort=False).max()",
        "rows.launch], sort=False).first()",
        "An exported distance is that of the first rank instead of the rank that is furthest away.",
    ),
    Mutant(
        "order-claim-needs-both",
        "order_matters",
        "orders > 1 or threads > 1",
        "orders > 1 and threads > 1",
        "The claim that the order of summation changes the gradient fails where only one of orders and thread counts varies.",
    ),
    # launch
    Mutant(
        "last-error-named",
        "_first",
        "ended[:1]",
        "ended[-1:]",
        "The rank that failed last is named as the culprit instead of the one that failed first.",
    ),
    Mutant(
        "stopped-rank-never-times-out",
        "Patience.is_at_its_end",
        "self._stopped_since.get(one.rank, now)",
        "now",
        "The launcher waits for a stopped rank without end.",
    ),
    Mutant(
        "restarts-counted-in-all",
        "_run_worlds",
        "0 if len(run_dir.missing(task.launch)) < before else vain + 1",
        "vain + 1",
        "A world that has finished cases counts as a restart in vain, so that the run ends too early.",
    ),
    Mutant(
        "sighup-not-noted",
        "signals_noted",
        "(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
        "(signal.SIGINT, signal.SIGTERM)",
        "SIGHUP kills the launcher before it has ended its ranks and said what is finished.",
    ),
    Mutant(
        "sides-do-not-alternate",
        "turns",
        "(0, 1) if number % 2 == 0 else (1, 0)",
        "(0, 1)",
        "In an A/B run the base side always goes first.",
    ),
    Mutant(
        "slurm-cpus-of-one-rank",
        "cpus",
        "(config.torchrun.nproc_per_node or 1) * config.threads_per_rank",
        "config.threads_per_rank",
        "The batch job asks for the CPUs of one rank a node.",
    ),
    # harness/__main__.py
    Mutant(
        "failed-case-exits-with-0",
        "_measure_and_report",
        "return _FAILURE if show([run_dir.path]) else 0",
        "return status if show([run_dir.path]) else 0",
        "A run under the user's own torchrun ends with status 0 although a case has failed.",
    ),
)
