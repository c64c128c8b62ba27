"""The rows that ranks write: one Parquet file a finished case and table. Raw numbers only; statistics are the report's."""

from dataclasses import dataclass
from math import nan

SCHEMA_VERSION = 4
"""Of the run directory, in environment.json. A change of the contract changes it."""

OK, SKIPPED, FAILED = "ok", "skipped", "failed"

METRICS = (
    "max_abs",
    "l2",
    "against_l2",
    "relative_l2",
    "cosine",
    "scale",
    "scaled_residual",
    "max_ulp",
    "mismatched_fraction",
    "bitwise_equal",
    "nonfinite",
)
"""Columns of `discrepancies` beside case_id, rank, against and parameter; see harness.numerics.discrepancy."""

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


@dataclass(frozen=True)
class Outcome:
    """A row of `cases`, beside the axes and the parameters of the case."""

    case_id: str
    status: str
    """ok, skipped or failed."""
    reason: str = ""
    """Why it was skipped or failed."""
    position: int = 0
    """Its place in the order of the launch, from 0."""
    world_size: int = 0
    backend: str = ""
    device: str = ""
    num_parameters: int = 0
    gradient_bytes: int = 0
    iterations: int = 0
    """Measured, after the warm-up."""
    stopped: str = ""
    """Why no more were made, where the number was left open: `precise`, `budget` or `limit`; empty where it was given."""
    warm_up: int = 0
    second_forward: bool = False
    """Whether the step takes a second forward, for an aggregation that communicates only after one made to; its time counts."""
    denominator: float = 0.0
    """What the loss of the whole batch counts: samples, or tokens that count."""
    min_rank_denominator: float = 0.0
    max_rank_denominator: float = 0.0
    predicted_max_abs: float = nan
    """How far theory puts rank 0's gradient from `reference`, where a fault or a normalization is known to move it."""
    predicted_relative_l2: float = nan
    loss: float = nan
    """Mean loss of the compared batch, as the case's own step computes it: the sum over ranks of (sum of the rank's losses /
    its denominator), over what the sum of the gradients is divided by. Of `aggregation=local`: rank 0's own shard's."""
    reference_loss: float = nan
    """The same in float64, from the forward that `reference` is the gradient of."""
    gradient_norm: float = nan
    """L2 norm of rank 0's gradient, aggregated, and clipped where the case clips."""
    reference_gradient_norm: float = nan
    """L2 norm of rank 0's `reference`."""
    gradient_sha256: str = ""
    """Of rank 0's bits: equal where two runs computed the same."""
    peak_memory_bytes: int = 0
    """Over the timed iterations, the largest of all ranks: allocated device memory on CUDA; on the CPU the whole process's
    resident set, which also holds what imports, references and earlier cases have left."""
    above_bare_bytes: int = 0
    """What the case takes more than one forward and one backward of the rank's mean loss do; of the rank where it is most."""
    declared_bytes: int = 0
    """What aggregation and reduction say that they need beside the gradient, of the rank where it is most."""
    clock_uncertainty_s: float = 0.0
    """By how much arrivals of ranks on different hosts may be misplaced; 0 on one host, whose ranks share a clock."""
    reference_s: float = 0.0
    """Rank 0's seconds in references that this case was the first to need; no part of any sample."""
    compare_s: float = 0.0
    """Rank 0's seconds in comparisons."""
    wall_s: float = 0.0
    """Rank 0's seconds from the start of the case to this row."""


@dataclass(frozen=True)
class Memory:
    """A row of `memory`: what a case took on one rank."""

    case_id: str
    rank: int
    peak_memory_bytes: int
    """Over the timed iterations: resident set on the CPU, allocated device memory on CUDA."""
    above_bare_bytes: int
    """What the case takes more than one forward and one backward of the rank's mean loss do."""
    declared_bytes: int
    """What aggregation and reduction say that they need beside the gradient."""


@dataclass(frozen=True)
class Device:
    """A row of `devices`: what a rank's GPU did in the measured iterations of a case, and what memory the rank holds on it."""

    case_id: str
    rank: int
    uuid: str
    samples: int
    """Readings by NVML within the measured iterations; 0 where there is no NVML, or where they were too short."""
    idle: int
    """Those of them in which the GPU had nothing to do. The figures below are of the others; NaN where there are none."""
    sm_mhz_min: float
    sm_mhz_median: float
    sm_mhz_max: float
    memory_mhz_median: float
    power_w_median: float
    power_w_max: float
    temperature_c_max: float
    utilization_median: float
    """Percent of the time in which a kernel ran."""
    slowed_by_power: float
    """Share of the samples in which the clock was reduced for the sake of power."""
    slowed_by_heat: float
    slowed_by: str
    """Reasons for a lower clock, by NVML's name, and its share: `SwPowerCap 25.0%; SwThermalSlowdown 10.0%`."""
    process_bytes: float
    """Device memory of the rank's process after the case: allocator, NCCL, cuBLAS and CUDA context; NaN where unknown."""
    reserved_bytes: int
    """Largest size of the allocator's memory, its cache included."""
    alloc_retries: int
    """Allocations that succeeded only after the allocator had returned its cache to the device."""


@dataclass(frozen=True)
class Discrepancy:
    """A row of `discrepancies`: one gradient held against another, whole or one parameter."""

    case_id: str
    rank: int
    """Whose gradient is held against the other one."""
    against: str
    parameter: str
    """Name of the parameter; empty for the whole gradient."""
    metrics: tuple[float, ...]
    """As METRICS says."""


@dataclass(frozen=True)
class Norm:
    """A row of `norms`: how long rank 0's gradient and its `reference` are, and how far apart, in one group of parameters."""

    case_id: str
    group: str
    """The module that the parameters belong to: their names up to the first number (`layers.17`), else up to the first dot;
    a parameter at the top level by its own name; empty for the whole gradient."""
    num_parameters: int
    """Elements."""
    norm: float
    """|value|, L2, of the aggregated gradient, clipped where the case clips; NaN or inf where it is not finite."""
    reference_norm: float
    """|reference|."""
    l2: float
    """|value - reference|."""
    relative_l2: float
    """|value - reference| / |reference|; inf where only the reference is 0."""


@dataclass(frozen=True)
class Drift:
    """A row of `drifts`: after so many optimizer steps from equal parameters, how far two cases have drifted apart."""

    case_id: str
    against: str
    """f"{CASE}<case_id>"."""
    optimizer: str
    step: int
    """Steps taken."""
    loss: float
    """Mean loss of the compared batch after the step."""
    against_loss: float
    max_abs: float
    """Largest absolute difference of a parameter."""
    relative_l2: float
    """Of the parameters' difference, to the other case's parameters."""
    bitwise_equal: bool


@dataclass(frozen=True)
class Observation:
    """A row of `observations`: one number, or text, that a probe saw on one rank."""

    setting: str
    """Under what it was seen."""
    quantity: str
    """What was seen, with its unit where it has one."""
    value: float
    text: str = ""


@dataclass(frozen=True)
class Timing:
    """A row of `collectives`: one timed call of a collective, on one rank."""

    collective: str
    """all_reduce, reduce_scatter or all_gather."""
    dtype: str
    bytes: int
    """Of the message, as nccl-tests counts: of all_gather's output and reduce_scatter's input."""
    count: int
    """Elements: of all_reduce's message, and of one rank's share of the others'."""
    in_place: bool
    in_flight: int
    """1: a blocking call; more: so many asynchronous ones, timed until each has been waited for."""
    iteration: int
    warm_up: bool
    clock: str
    """host or cuda_event: one call, after a barrier; host_back_to_back, cuda_back_to_back or cuda_graph: calls in a row."""
    seconds: float
    """Seconds of a call; of calls in a row, the mean."""


@dataclass(frozen=True)
class Asked:
    """A row of `probes`: what became of one question of a probe."""

    probe: str
    subject: str
    """What the question is about."""
    status: str
    """ok, skipped or failed."""
    reason: str = ""
    wall_s: float = 0.0


@dataclass(frozen=True)
class Diagnosis:
    """A row of `diagnoses`: why a case's gradient is not its float64 reference."""

    case_id: str
    verdict: str
    """One of VERDICTS."""
    cause: str
    """A short name within the verdict: lost_rank, mean_of_means, ...; where several fit, all of them, with |."""
    statement: str
    advice: str
    confidence: str
    """proved, certain, likely or ambiguous."""
    explained: float
    """Share of the squared distance that the verdict explains."""
    distance: float
    """|value - reference| / |reference|, where the reference is not 0; rank 0's."""
    floor: float
    """The noise floor, in the same unit. From float32 on, the larger of what permutations show and what the bound says is
    probable; below, the measured distance of sound gradients in the step's own precision."""
    exact_distance: float
    """The distance of the same run in float64; NaN where there was none."""
    factor: float = nan
    """Of a scale."""
    rank: int = -1
    """Whom the verdict names; -1: nobody."""
    sample: int = -1
    replayed: float = nan
    """Share of the elements of the collective's result whose bits a replay in the revealed order gives; NaN: no replay."""
    proved: bool = False
    """Whether the replay gives all of them."""
    orders: str = ""
    """In which ranks are added up, each order once, with | between them: brackets, or what masks show instead."""
    independent: int = 0
    """Independent directions among the ranks' gradients."""
    condition: float = nan
    """Largest over smallest singular value of the ranks' gradients, each scaled to length 1."""
    residual: float = nan
    """What no weights of the ranks explain, relative to the gradient."""
    seconds: float = 0.0
    """What the diagnosis took, without the float64 rerun."""
    exact_seconds: float = 0.0
    """What the float64 rerun took."""


@dataclass(frozen=True)
class Weight:
    """A row of `weights`: what the loss of a rank's batch, or of one sample, really weighs in a case's gradient."""

    case_id: str
    rank: int
    sample: int
    """Place in the rank's batch; -1: all of it."""
    weight: float
    """Per term of the loss; NaN: not identifiable."""
    should: float
    error: float
    """How far off `weight` may be."""
    same_as: int = -1
    """Another rank, or sample of all ranks together, whose gradient is the same: only the sum of their weights is known."""
    lag: int = 0
    """Of which iteration's batch: 0 of the result's, 1 of the one before."""


@dataclass(frozen=True)
class Step:
    """A row of `budget`: one step from the full-batch float64 gradient to the case's."""

    case_id: str
    step: str
    share: float
    """<step, total> / |total|^2; NaN where the total is 0."""
    length: float
    """|step| / |total|."""
    l2: float
    """|step|."""


@dataclass(frozen=True)
class Floor:
    """A row of `floors`: how far rounding may put a parameter's gradient, beside how far it is."""

    case_id: str
    parameter: str
    """Empty for the whole gradient."""
    l2: float
    """|value - reference|."""
    permutation: float
    """Root mean square over permutations of the ranks' batches, in the same unit."""
    probable: float
    """sqrt(h) u * |sum of the magnitudes of the contributions|: the absolute floor."""
    worst: float
    """h u / (1 - h u) * the same."""
    kernels: float
    """Distance from the reference of the sum of the ranks' sound local gradients, as the case's kernels make them."""


@dataclass(frozen=True)
class Finding:
    """A row of `findings`: a verdict with its evidence."""

    case_id: str
    kind: str
    statement: str
    """One sentence for a person."""
    evidence: float
    """The number that the statement rests on."""
