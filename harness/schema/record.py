"""Tables of a run directory, each declared once, by the class of its rows. Raw numbers only; statistics are the report's.

A declaration gives the folder, the Arrow schema of its files, what the reader checks, the frame of `Run`, and the table of
columns in docs/run_directory.md, which `python -m tests.run_directory` writes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import nan
from typing import Annotated, Any

from harness.schema.case import AXES
from harness.schema.declare import CASES, GROUP, MEASURED, PROBES, Column, column, table
from harness.schema.declare import TABLES as TABLES

SCHEMA_VERSION = 5
"""Version of the run directory, in environment.json. Raise it for a table or column that is renamed or removed, or that changes
its type or its meaning; not for one that is added (`Column.since`)."""
READ_VERSIONS = (4, 5)
"""Versions that are read: files of version 4 have the former names of some columns (`Column.formerly`)."""

OK, SKIPPED, FAILED = "ok", "skipped", "failed"

REFERENCE, FULL_BATCH, PREDICTED, RANK_0 = "reference", "reference:full_batch", "predicted", "rank:0"
ROUNDED, SINGLE_RANK = "reference:rounded", "single_rank"
"""Values of `against`; the other one is f"{CASE}<case_id>"."""
CASE = "case:"

IDENTICAL, ORDER, ROUNDING, PRECISION = "identical", "order", "rounding", "precision"
SCALE, WEIGHTING, STALE, NOT_REDUCED = "scale", "weighting", "stale", "not_reduced"
OTHER_FUNCTION, NON_DETERMINISTIC, RANKS_DISAGREE, CANNOT_TELL, UNEXPLAINED = (
    "other_function",
    "non_deterministic",
    "ranks_disagree",
    "cannot_tell",
    "unexplained",
)
VERDICTS = (
    *(IDENTICAL, ORDER, ROUNDING, PRECISION, SCALE, WEIGHTING, STALE, NOT_REDUCED),
    *(OTHER_FUNCTION, NON_DETERMINISTIC, RANKS_DISAGREE, CANNOT_TELL, UNEXPLAINED),
)
"""Values of `verdict` in `diagnoses`; docs/diagnosis.md says what each of them claims."""
OF_WEIGHTS = (SCALE, WEIGHTING, STALE)
"""Those that find weights that are not what they should be."""
VERDICT = "verdict"
"""Kind of the finding that tells what is wrong with a case."""
CLEAN = (IDENTICAL, ORDER, ROUNDING, PRECISION)
"""Those that find nothing wrong but the finiteness of floats."""

HOST, CUDA_EVENT, CUDA_QUEUED = "host", "cuda_event", "cuda_queued"
"""Clocks. `cuda_queued` times iterations that the host has launched before the device begins them (harness/rank/queued.py)."""
QUEUED_STEP = ("step", CUDA_QUEUED)
"""Phase and clock without which a case has no other column of `cuda_queued` either."""
HOST_BACK_TO_BACK, CUDA_BACK_TO_BACK, CUDA_GRAPH = "host_back_to_back", "cuda_back_to_back", "cuda_graph"
"""Clocks of one of several calls in a row (harness/rank/in_a_row.py)."""
ARRIVAL = "arrival"
"""Clock that says when, not how long: seconds on the clock of rank 0's host at which a rank entered a phase."""
NOT_MEASURED = "clock not measured"
"""Quantity of an observation of a clock that a setting of the collective sweep lacks."""


_PREDICTED = (
    "Distance of rank 0's gradient from `reference` that theory predicts, where a fault or a normalization moves it; else NaN."
)
_LOSS = (
    "Mean loss of the compared batch, as the case's step computes it, and in float64 from the forward of `reference`: the sum "
    "over ranks of (sum of the rank's losses / its denominator), divided as the sum of the gradients is to be. Of "
    "`aggregation=local`: of rank 0's shard. Recorded in the last warm-up of the batch, which has the parameters, samples and "
    "random numbers of the last iteration, or in the last iteration where there is none. A fault in a rank's denominator or "
    "samples changes it; one in the sum over ranks changes the gradient alone. Both are NaN if the reduction passes no loss to "
    "`work.note`."
)
_NORMS = (
    "L2 norm of rank 0's gradient, aggregated, and clipped where the case clips, and of its `reference`; NaN or inf where it "
    "is not finite."
)
CaseId = Annotated[str, column("Case; see `case_id` of `cases`.")]
Rank = Annotated[int, column("Rank.", least=0)]
Probe = Annotated[str, column("Probe, by its name.")]
Subject = Annotated[str, column("Subject of the question.")]
Status = Annotated[str, column("`ok`; `skipped`: not possible here; `failed`: an error.", values=(OK, SKIPPED, FAILED))]
Reason = Annotated[str, column("Reason why it was skipped, or failed.")]

_LAUNCH = {"launch": Column("Launch, from 0.", kind=int, least=0)}
_AXES = dict.fromkeys(AXES, Column("Option of each axis.", coded=True))
_OF_PROBE = {
    "probe": Column("Probe, by its name."),
    "subject": Column("Subject of the question."),
    "rank": Column("Rank.", kind=int),
}


@table(
    "cases",
    of=CASES,
    a_row="finished case and launch; the file is written last",
    beside=_LAUNCH | _AXES,
    key=("case_id",),
    single=True,
)
@dataclass(frozen=True)
class Outcome:
    """A row of `cases`, beside the launch, the axes and the parameters of the case."""

    case_id: Annotated[
        str,
        column(
            "Unique in a run, equal between runs that ask for the same: the options, from `fault` on as `axis=option` and "
            "only where unusual, and a digest of their parameters."
        ),
    ]
    status: Annotated[
        str,
        column(
            "`ok`; `skipped`: an option cannot serve the case; `failed`: an error, in any rank.", values=(OK, SKIPPED, FAILED)
        ),
    ]
    reason: Reason = ""
    position: Annotated[int, column("Place of the case in the order of its launch, from 0.", least=0)] = 0
    world_size: Annotated[int, column("Number of ranks.", least=0)] = 0
    backend: Annotated[str, column("Backend of the measured groups.")] = ""
    device: Annotated[str, column("Type of the ranks' devices.")] = ""
    num_parameters: Annotated[int, column("Elements of the gradient.", least=0)] = 0
    gradient_bytes: Annotated[int, column("Size of the gradient.", unit="bytes", least=0)] = 0
    iterations: Annotated[int, column("Measured iterations, after the warm-up.", least=0)] = 0
    stop_reason: Annotated[
        str,
        column(
            "Why no more iterations were made, where `until.relative` left their number open: `precise`, `budget` or "
            "`limit`; else empty.",
            formerly="stopped",
        ),
    ] = ""
    warm_up: Annotated[int, column("Iterations of the warm-up.", least=0)] = 0
    second_forward: Annotated[
        bool,
        column("True if the step takes a second forward: `ddp*` under several backward passes over one; its time counts."),
    ] = False
    denominator: Annotated[float, column("Terms of the loss of the whole batch: samples, or tokens that count.")] = 0.0
    min_rank_denominator: Annotated[float, column("Fewest and most terms of the loss on one rank.")] = 0.0
    max_rank_denominator: Annotated[float, column("Fewest and most terms of the loss on one rank.")] = 0.0
    predicted_max_abs: Annotated[float, column(_PREDICTED)] = nan
    predicted_relative_l2: Annotated[float, column(_PREDICTED)] = nan
    loss: Annotated[float, column(_LOSS, since="0.1")] = nan
    reference_loss: Annotated[float, column(_LOSS, since="0.1")] = nan
    gradient_norm: Annotated[float, column(_NORMS, since="0.1")] = nan
    reference_gradient_norm: Annotated[float, column(_NORMS, since="0.1")] = nan
    gradient_sha256: Annotated[
        str, column("SHA-256 of the bits of rank 0's gradient: equal where two runs computed the same.")
    ] = ""
    peak_memory_bytes: Annotated[
        int,
        column(
            "Peak over the timed iterations, the largest of all ranks: allocated device memory on CUDA; on the CPU the whole "
            "process's resident set, with what imports, references and earlier cases have left in it, so that it grows along "
            "the order of the cases and the report shows none.",
            unit="bytes",
        ),
    ] = 0
    above_baseline_bytes: Annotated[
        int,
        column(
            "Memory of the case less that of the baseline, one forward and backward of the rank's mean loss; each from what "
            "was there before. Of the rank where it is most; 0 where the system does not tell.",
            unit="bytes",
            formerly="above_bare_bytes",
        ),
    ] = 0
    declared_bytes: Annotated[
        int,
        column(
            "Memory that aggregation and reduction declare beside the gradient, of the rank where it is most.", unit="bytes"
        ),
    ] = 0
    clock_uncertainty_s: Annotated[
        float,
        column(
            "Largest error of arrivals of ranks on different hosts; 0 on one host, whose ranks share a clock.",
            unit="s",
            finite=True,
        ),
    ] = 0.0
    reference_s: Annotated[
        float,
        column(
            "Rank 0's time in references that this case was the first to need; no part of any sample.", unit="s", finite=True
        ),
    ] = 0.0
    compare_s: Annotated[float, column("Rank 0's time in comparisons.", unit="s", finite=True)] = 0.0
    wall_s: Annotated[float, column("Rank 0's time from the start of the case to this row.", unit="s", finite=True)] = 0.0


def _complete(rows: Any) -> None:
    from harness.schema.samples import check_samples  # pyarrow: not in the launcher

    check_samples(rows)


@table(
    "samples",
    of=CASES,
    a_row="rank, iteration, phase and clock",
    beside=_LAUNCH,
    needed=MEASURED,
    most_rows=2**24,
    large=True,
    check=_complete,
)
@dataclass(frozen=True)
class Sample:
    """A row of `samples`. A case of 1,024 ranks has 2**18 of them a launch: the writer makes columns, not rows."""

    case_id: Annotated[str, column("Case; see `case_id` of `cases`.", coded=True)]
    rank: Rank
    visit: Annotated[int, column("Visit of the case, from 0: the round of `order=interleaved`, else 0.", least=0)]
    iteration: Annotated[int, column("Iteration, from 0, counted on over visits; warm-ups included.", least=0)]
    warm_up: Annotated[bool, column("True for iterations of the warm-up.")]
    phase: Annotated[str, column("Phase of the step, see below.", coded=True)]
    clock: Annotated[str, column("Clock, see below.", coded=True)]
    seconds: Annotated[float, column("Duration; of clock `arrival` a time.", unit="s")]


@table(
    "memory",
    of=CASES,
    a_row="rank of a measured case",
    beside=_LAUNCH,
    key=("case_id", "rank"),
    needed=MEASURED,
)
@dataclass(frozen=True)
class Memory:
    """A row of `memory`: what a case took on one rank."""

    case_id: CaseId
    rank: Rank
    peak_memory_bytes: Annotated[int, column("As in `cases`, of this rank.", unit="bytes")]
    above_baseline_bytes: Annotated[int, column("As in `cases`, of this rank.", unit="bytes", formerly="above_bare_bytes")]
    declared_bytes: Annotated[int, column("As in `cases`, of this rank.", unit="bytes")]


_READING = 1e15
"""Largest reading, in MHz, W, degrees Celsius, percent or bytes."""
_Mhz = Annotated[
    float, column("Clock of the SMs, over the readings in which the GPU was not idle.", unit="MHz", least=0, most=_READING)
]
_Share = Annotated[
    float, column("Share of these readings in which the clock was reduced to save power, or because of heat.", least=0, most=1)
]
_Power = Annotated[float, column("Power, over the same readings.", unit="W", least=0, most=_READING)]


@table(
    "devices",
    of=CASES,
    a_row="rank of a measured case, in runs on GPUs",
    beside=_LAUNCH,
    key=("case_id", "rank"),
)
@dataclass(frozen=True)
class Device:
    """A row of `devices`: what a rank's GPU did in the measured iterations of a case, and what memory the rank holds on it."""

    case_id: CaseId
    rank: Rank
    uuid: Annotated[str, column("UUID of the rank's GPU.")]
    samples: Annotated[
        int, column("Readings by NVML that lie within the measured iterations, of all visits; 0 without NVML.", least=0)
    ]
    idle: Annotated[
        int,
        column(
            "Those of them in which the GPU had nothing to do. The columns below are of the others; NaN where there are none.",
            least=0,
        ),
    ]
    sm_mhz_min: _Mhz
    sm_mhz_median: _Mhz
    sm_mhz_max: _Mhz
    memory_mhz_median: Annotated[float, column("Clock of the memory.", unit="MHz", least=0, most=_READING)]
    power_w_median: _Power
    power_w_max: _Power
    temperature_c_max: Annotated[float, column("Temperature.", unit="degrees Celsius", least=0, most=_READING)]
    utilization_median: Annotated[float, column("Part of the time in which a kernel ran.", unit="%", least=0, most=_READING)]
    slowed_by_power: _Share
    slowed_by_heat: _Share
    slowed_by: Annotated[
        str,
        column("Every reason for a lower clock, by NVML's name, with its share: `SwPowerCap 25.0%; HwThermalSlowdown 10.0%`."),
    ]
    process_bytes: Annotated[
        float,
        column(
            "Device memory of the rank's process after the case, by NVML: allocator, NCCL's buffers, cuBLAS and the CUDA "
            "context; NaN where the driver does not tell it, or counts pids in another namespace.",
            unit="bytes",
            least=0,
            most=_READING,
        ),
    ]
    reserved_bytes: Annotated[
        int,
        column(
            "Most that torch's allocator held of the device, its cache included; with `exposed=true`, also that of the step "
            "without communication.",
            unit="bytes",
            least=0,
        ),
    ]
    alloc_retries: Annotated[
        int,
        column(
            "Allocations, from the warm-up on, that succeeded only after the allocator had returned its cache to the device.",
            least=0,
        ),
    ]


_LENGTHS = "L2 norm of d, of `against`, and their ratio."
_BITS = "Elements whose bits differ, `against` rounded to value's dtype; +0 and -0 differ."


@table(
    "discrepancies",
    of=CASES,
    a_row="comparison of a rank's gradient, whole or of one parameter; d is value less `against`",
    beside=_LAUNCH,
    key=("case_id", "rank", "against", "parameter"),
    needed=MEASURED,
    most_rows=2**22,
    required={"against": REFERENCE, "parameter": ""},
)
@dataclass(frozen=True)
class Discrepancy:
    """A row of `discrepancies`: one gradient compared with another, whole or one parameter (harness.numerics.discrepancy)."""

    case_id: CaseId
    rank: Annotated[int, column("Rank whose gradient is compared, the value.")]
    against: Annotated[str, column("Other gradient, see below.")]
    parameter: Annotated[str, column("Name of the parameter; empty for the whole gradient.")]
    max_abs: Annotated[float, column("Largest absolute element of d.")]
    l2: Annotated[float, column(_LENGTHS)]
    against_l2: Annotated[float, column(_LENGTHS)]
    relative_l2: Annotated[float, column(_LENGTHS)]
    cosine: Annotated[float, column("Cosine of the angle; cannot see a factor.")]
    scale: Annotated[float, column("alpha for which value is closest to alpha * `against`.")]
    scaled_residual: Annotated[float, column("Relative L2 that `scale` leaves.")]
    max_ulp: Annotated[
        float, column("Largest distance in units in the last place of value's dtype; large where elements cancel.", unit="ulp")
    ]
    mismatched_fraction: Annotated[float, column(_BITS)]
    bitwise_equal: Annotated[bool, column("True if no element's bits differ.")]
    nonfinite: Annotated[int, column("Elements of value that are NaN or Inf.")]

    @classmethod
    def of(cls, case_id: str, rank: int, against: str, parameter: str, metrics: Sequence[float]) -> "Discrepancy":
        """Return the row with `metrics`, in the order of METRICS."""
        named: dict[str, Any] = dict(zip(METRICS, metrics, strict=True))
        named |= {"bitwise_equal": bool(named["bitwise_equal"]), "nonfinite": int(named["nonfinite"])}
        return cls(case_id, rank, against, parameter, **named)

    @property
    def metrics(self) -> dict[str, float]:
        """Metric to its value."""
        return {name: getattr(self, name) for name in METRICS}


METRICS = tuple(each.name for each in fields(Discrepancy))[4:]
"""Columns of `discrepancies` that compare; see harness.numerics.discrepancy."""


@table("findings", of=CASES, a_row="finding about a measured case", beside=_LAUNCH, needed=MEASURED)
@dataclass(frozen=True)
class Finding:
    """A row of `findings`: a statement with its evidence."""

    case_id: CaseId
    kind: Annotated[str, column("Kind of the finding, see below.")]
    statement: Annotated[str, column("One sentence for a person.")]
    evidence: Annotated[float, column("Number that the statement rests on.")]


@table(
    "norms",
    of=CASES,
    a_row="measured case and group of parameters, of rank 0's gradient and its `reference`",
    beside=_LAUNCH,
    key=("case_id", "group"),
    needed_with="gradient_norm",
)
@dataclass(frozen=True)
class Norm:
    """A row of `norms`: length of a gradient and of its reference in one group of parameters, and their distance."""

    case_id: CaseId
    group: Annotated[
        str,
        column(
            "Module of the parameters: their names up to the first number (`layers.17`), else up to the first dot; a parameter "
            "at the top level by its own name; empty for the whole gradient."
        ),
    ]
    num_parameters: Annotated[int, column("Elements.", least=0)]
    norm: Annotated[
        float, column("L2 norm of the gradient, aggregated, and clipped where the case clips; NaN or inf where not finite.")
    ]
    reference_norm: Annotated[float, column("L2 norm of `reference`.")]
    l2: Annotated[float, column("L2 norm of value less reference.")]
    relative_l2: Annotated[float, column("`l2` / `reference_norm`; inf where only the reference is 0.")]


@table(
    "drifts",
    of=CASES,
    a_row="optimizer, number of steps and earlier case of the same setting, with `drift.steps`",
    beside=_LAUNCH,
    key=("case_id", "against", "optimizer", "step"),
)
@dataclass(frozen=True)
class Drift:
    """A row of `drifts`: distance of two cases' parameters after optimizer steps from equal parameters."""

    case_id: CaseId
    against: Annotated[str, column("Other case, as `case:<case_id>`.")]
    optimizer: Annotated[str, column("Optimizer.")]
    step: Annotated[int, column("Optimizer steps taken: the powers of two, and the last.", least=0)]
    loss: Annotated[float, column("Mean loss of the compared batch after the step.")]
    against_loss: Annotated[float, column("The same, of the other case.")]
    max_abs: Annotated[float, column("Largest absolute difference of a parameter, on rank 0.")]
    relative_l2: Annotated[float, column("L2 norm of the parameters' difference, relative to the other case's parameters.")]
    bitwise_equal: Annotated[bool, column("True if all parameters have equal bits.")]


@table("diagnoses", of=CASES, a_row="measured case, with `diagnose=true`", beside=_LAUNCH, key=("case_id",), needed=GROUP)
@dataclass(frozen=True)
class Diagnosis:
    """A row of `diagnoses`: why a case's gradient is not its float64 reference."""

    case_id: CaseId
    verdict: Annotated[str, column("Verdict, see [diagnosis.md](diagnosis.md).")]
    """One of VERDICTS."""
    cause: Annotated[
        str,
        column(
            "Short name within the verdict: `lost_rank`, `mean_of_means`, ...; where several fit, all, with a bar between them."
        ),
    ]
    statement: Annotated[str, column("One sentence for a person.")]
    advice: Annotated[str, column("Advice for a person.")]
    confidence: Annotated[str, column("`proved`, `certain`, `likely` or `ambiguous`.")]
    explained: Annotated[float, column("Share of the squared distance that the verdict explains.")]
    distance: Annotated[
        float, column("L2 norm of value less reference, relative to the reference where that is not 0; rank 0's.")
    ]
    floor: Annotated[
        float,
        column(
            "Noise floor, in the same unit: from float32 on, the larger of the distance of permutations and the bound that "
            "is probable; below, the measured distance of sound gradients in the step's own precision."
        ),
    ]
    exact_distance: Annotated[float, column("Distance of the same step in float64; NaN where there was none.")]
    factor: Annotated[float, column("Factor, of verdict `scale`.")] = nan
    rank: Annotated[int, column("Rank, and sample, that the verdict names; -1: none.")] = -1
    sample: Annotated[int, column("Rank, and sample, that the verdict names; -1: none.")] = -1
    replayed: Annotated[
        float,
        column(
            "Share of the elements of the collective's result whose bits a replay in the revealed order gives; NaN: no replay."
        ),
    ] = nan
    proved: Annotated[bool, column("True if the replay gives all of them.")] = False
    summation_orders: Annotated[
        str,
        column(
            "Orders in which ranks are added up, each once, with a bar between them: brackets, or what masks show instead.",
            formerly="orders",
        ),
    ] = ""
    independent: Annotated[int, column("Independent directions among the ranks' gradients.", least=0)] = 0
    condition: Annotated[
        float, column("Largest over smallest singular value of the ranks' gradients, each scaled to length 1.")
    ] = nan
    residual: Annotated[float, column("Part of the gradient that no weights of the ranks explain, relative to it.")] = nan
    seconds: Annotated[float, column("Time of the diagnosis, without the float64 rerun.", unit="s", finite=True)] = 0.0
    exact_seconds: Annotated[float, column("Time of the float64 rerun.", unit="s", finite=True)] = 0.0


@table(
    "weights",
    of=CASES,
    a_row="rank, and sample where it was asked, with `diagnose=true`",
    beside=_LAUNCH,
    key=("case_id", "rank", "sample", "lag"),
    needed=GROUP,
)
@dataclass(frozen=True)
class Weight:
    """A row of `weights`: weight of the loss of a rank's batch, or of one sample, in a case's gradient."""

    case_id: CaseId
    rank: Rank
    sample: Annotated[int, column("Place in the rank's batch; -1: all of it.")]
    weight: Annotated[float, column("Weight per term of the loss; NaN: not identifiable.")]
    expected: Annotated[float, column("Weight that a right gradient has.", formerly="should")]
    error: Annotated[float, column("Largest error of `weight`.")]
    same_as: Annotated[
        int,
        column(
            "Another rank, or sample of all ranks together, whose gradient is the same: only the sum of their weights is "
            "known; -1: none."
        ),
    ] = -1
    lag: Annotated[int, column("Iteration of the batch: 0: the result's, 1: the one before.")] = 0


@table("budget", of=CASES, a_row="stage, with `diagnose=true`", beside=_LAUNCH, key=("case_id", "stage"), needed=GROUP)
@dataclass(frozen=True)
class Stage:
    """A row of `budget`: one stage on the way from the full-batch float64 gradient to the case's."""

    case_id: CaseId
    stage: Annotated[str, column("Name of the stage, a difference of two gradients.", formerly="step")]
    share: Annotated[float, column("<stage, total> / |total|^2; NaN where the total is 0.")]
    length: Annotated[float, column("|stage| / |total|.")]
    l2: Annotated[float, column("|stage|.")]


@table(
    "floors",
    of=CASES,
    a_row="parameter, and one for the whole gradient, with `diagnose=true`",
    beside=_LAUNCH,
    key=("case_id", "parameter"),
    needed=GROUP,
)
@dataclass(frozen=True)
class Floor:
    """A row of `floors`: distance that rounding may make in a parameter's gradient, beside the distance that it has."""

    case_id: CaseId
    parameter: Annotated[str, column("Name of the parameter; empty for the whole gradient.")]
    l2: Annotated[float, column("L2 norm of value less reference.")]
    permutation: Annotated[float, column("Root mean square over permutations of the ranks' batches, in the same unit.")]
    probable: Annotated[float, column("sqrt(h) u * |sum of the magnitudes of the contributions|: the absolute floor.")]
    worst: Annotated[float, column("h u / (1 - h u) * the same.")]
    kernels: Annotated[
        float,
        column("Distance from the reference of the sum of the ranks' sound local gradients, as the case's kernels make them."),
    ]


@table(
    "probes",
    of=PROBES,
    a_row="question of a finished probe; the file is written last",
    key=("subject",),
    needed=MEASURED,
)
@dataclass(frozen=True)
class Asked:
    """A row of `probes`: answer to one question of a probe."""

    probe: Probe
    subject: Subject
    status: Status
    reason: Reason = ""
    wall_s: Annotated[float, column("Time of the question.", unit="s", finite=True)] = 0.0


@table("observations", of=PROBES, a_row="number, or text, that a probe saw on one rank", beside=_OF_PROBE, needed=MEASURED)
@dataclass(frozen=True)
class Observation:
    """A row of `observations`, beside probe, subject and rank."""

    setting: Annotated[str, column("Setting in which it was seen.")]
    quantity: Annotated[str, column("Quantity, with its unit where it has one.")]
    value: Annotated[float, column("Value.")]
    text: Annotated[str, column("Value, where it is a text.")] = ""


@table(
    "collectives",
    of=PROBES,
    a_row="timed call of a collective, on one rank",
    beside=_OF_PROBE,
    needed=MEASURED,
    most_rows=2**24,
)
@dataclass(frozen=True)
class Timing:
    """A row of `collectives`, beside probe, subject and rank."""

    collective: Annotated[str, column("`all_reduce`, `reduce_scatter` or `all_gather`.")]
    dtype: Annotated[str, column("Type of the elements.")]
    bytes: Annotated[
        int,
        column(
            "Size of the message, as nccl-tests counts: of all_gather's output and reduce_scatter's input.",
            unit="bytes",
            least=0,
        ),
    ]
    count: Annotated[int, column("Elements: of all_reduce's message, of one rank's share of the others'.", least=0)]
    in_place: Annotated[bool, column("True if the output is the input's memory.")]
    in_flight: Annotated[int, column("1: a blocking call; k: k asynchronous calls, timed until each has been waited for.")]
    iteration: Annotated[int, column("Iteration, from 0; of calls in a row counted anew.", least=0)]
    warm_up: Annotated[bool, column("True for iterations of the warm-up.")]
    clock: Annotated[
        str,
        column(
            "`host`, and on CUDA `cuda_event`: one call after a barrier; `host_back_to_back`, or on CUDA with NCCL "
            "`cuda_back_to_back` and `cuda_graph`: calls in a row."
        ),
    ]
    seconds: Annotated[
        float, column("Duration of all calls in flight together; of calls in a row the mean.", unit="s", above=0, finite=True)
    ]
