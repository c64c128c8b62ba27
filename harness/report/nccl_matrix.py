"""Runs of equal configuration under different settings of NCCL: bits, summation order and bandwidth of each in one table."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

import pandas as pd

from harness.report.collectives import collectives, of_bandwidth
from harness.report.differing_keys import differing_keys
from harness.report.frame import Run
from harness.report.nccl_log import NcclLog
from harness.report.probes import SUMMATION_ORDER
from harness.report.tables import Table
from harness.schema.config import BenchmarkConfig
from harness.schema.nccl_settings import Combination, combination_of
from harness.schema.record import OK

_ALL_REDUCE, _IN_NCCL = "all_reduce", "AllReduce"
_SIZES = 3
"""Sizes whose bandwidth the table shows: the smallest, the middle and the largest; nccl_matrix.csv has all."""
_ORDERS = 4
"""Orders of one run that are spelled out."""
_NOTE = (
    "One run each, in fresh processes, one after the other: the machine's drift is in the differences of bandwidth. as asked: "
    "what NCCL's log says of the all_reduces. bits: the gradients of all cases; equal letters, equal bits. order: how the "
    "ranks are added up; letters as in the table below. busbw: GB/s of all_reduce, as in the sweep, while NCCL logs each call."
)
_IGNORED = "the backend is {}: it ignores NCCL's settings, and the runs differ by chance alone"
_FEW_RANKS = {
    1: "On one rank NCCL launches no collective kernel, and chooses nothing.",
    2: "On two ranks there is one addition for each element: its bits do not depend on the order.",
}
_OWN = "NCCL's choice"


def is_matrix(runs: Sequence[Run]) -> bool:
    """True if the runs ask NCCL for different things on the same number of ranks."""
    asked = {_asked(run) for run in runs}
    return len(asked) > 1 and len({run.config.world_size for run in runs}) == 1


def _asked(run: Run) -> Combination:
    return combination_of(run.config.env)


@dataclass(frozen=True)
class _Answer:
    """Results of one run of the matrix."""

    bits: tuple[tuple[str, str], ...]
    """(case, SHA-256 of its gradient) of every case."""
    orders: tuple[tuple[str, str, float], ...]
    """(question, order, elements) of the probe summation_order."""
    busbw: dict[int, float]
    """Size of the message to GB/s of all_reduce."""


def matrix(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: what was asked, what NCCL chose, bits, orders, busbw by size in GB/s, and why there are no numbers."""
    answers = [_answer(run) for run in runs]
    bits = _letters([answer.bits for answer in answers])
    orders = _letters([answer.orders for answer in answers])
    sizes = sorted({size for answer in answers for size in answer.busbw})
    rows = [
        {
            "algorithm": _asked(run).algorithm or _OWN,
            "protocol": _asked(run).protocol or _OWN,
            "channels": str(_asked(run).channels or _OWN),
            "nccl_chose": _chosen(run.nccl),
            "as_asked": _as_asked(run),
            "bits": bits.get(answer.bits, ""),
            "order": orders.get(answer.orders, ""),
            **{f"busbw_gbs_{size}": answer.busbw.get(size, float("nan")) for size in sizes},
            "gradient_sha256": " ".join(sha for _, sha in answer.bits),
            "why_none": _why_none(run),
            "run": str(run.path),
        }
        for run, answer in zip(runs, answers, strict=True)
    ]
    return pd.DataFrame(rows)


def matrix_tables(runs: Sequence[Run], rows: pd.DataFrame) -> Iterator[Table]:
    """The matrix, the orders that its letters stand for, and the run directories."""
    busbw = [column for column in rows.columns if column.startswith("busbw_gbs_")]
    kept = [busbw[place] for place in sorted({0, len(busbw) // 2, len(busbw) - 1})][:_SIZES] if busbw else []
    table = rows[["algorithm", "protocol", "channels", "nccl_chose", "as_asked", "bits", "order"]].assign(
        **{f"busbw, {column.removeprefix('busbw_gbs_')} B": rows[column].map(_gigabytes) for column in kept},
        **{"without numbers": rows.why_none},
    )
    table = table.rename(columns={"nccl_chose": "NCCL chose", "as_asked": "as asked"})
    empty = [column for column in table.columns if (table[column] == "").all()]
    yield Table("NCCL: algorithm, protocol, channels", table.drop(columns=empty), " ".join([_NOTE, *_remarks(runs)]))
    spelled = list(_spelled_orders(runs, rows))
    if spelled:
        yield Table("Summation orders", pd.DataFrame(spelled, columns=["order", "message", "elements", "sum of the ranks"]))
    yield Table("Runs", rows[["algorithm", "protocol", "channels", "run"]])


def _remarks(runs: Sequence[Run]) -> Iterator[str]:
    backends = sorted({str(run.environment["backend"]) for run in runs if run.environment.get("backend")})
    yield from (f"(!) {_IGNORED.format(backend)}." for backend in backends if backend != "nccl")
    if runs[0].config.world_size in _FEW_RANKS:
        yield _FEW_RANKS[runs[0].config.world_size]
    unlike = differing_keys([_without_nccl(run.config) for run in runs])
    if unlike:
        yield f"(!) The runs differ in more than NCCL's settings: {', '.join(unlike)}."


def _without_nccl(config: BenchmarkConfig) -> BenchmarkConfig:
    return replace(config, env={name: value for name, value in config.env.items() if not name.startswith("NCCL_")})


def _answer(run: Run) -> _Answer:
    measured = run.cases[run.cases.status == OK]
    bits = tuple(zip(measured.case_id.astype(str), measured.gradient_sha256.astype(str), strict=True))
    return _Answer(bits, _orders(run), _busbw(run))


def _orders(run: Run) -> tuple[tuple[str, str, float], ...]:
    seen = run.observations
    own = seen[(seen.probe.astype(str) == SUMMATION_ORDER) & (seen["rank"] == 0) & (seen.quantity == "elements")]
    return tuple((str(row.subject), str(row.setting), float(str(row.value))) for row in own.itertuples())


def _busbw(run: Run) -> dict[int, float]:
    """Bus bandwidth, GB/s, by bytes: of the first dtype, in place, with the fewest calls in flight."""
    rows = collectives(run)
    own = rows[rows.collective == _ALL_REDUCE] if len(rows) else rows
    if own.empty:
        return {}
    _, own = of_bandwidth(own)
    first = own[(own.dtype == own.dtype.iloc[0]) & (own.in_flight == own.in_flight.min())]
    return {int(row["bytes"]): float(row["busbw_gbs"]) for row in first.to_dict("records")}


def _letters(answers: Sequence[Hashable]) -> dict[Hashable, str]:
    """A letter for each different answer, in order of appearance; none for an empty one."""
    different = [answer for answer in dict.fromkeys(answers) if answer]
    return {answer: _letter(place) for place, answer in enumerate(different)}


def _letter(place: int) -> str:
    """A to Z, then A1 to Z1, and so on."""
    again, letter = divmod(place, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(again) if again else "")


def _all_reduces(log: NcclLog | None) -> list[dict[Hashable, object]]:
    """Choices for all_reduce; NCCL before 2.23 does not name the collective."""
    if log is None:
        return []
    rows: list[dict[Hashable, object]] = log.choices[log.choices.collective.isin([_IN_NCCL, ""])].to_dict("records")
    return rows


def _chosen(log: NcclLog | None) -> str:
    pairs = [f"{row['algorithm']} {row['protocol']}" for row in _all_reduces(log)]
    return ", ".join(dict.fromkeys(pairs))


def _as_asked(run: Run) -> str:
    """Answer if NCCL did what it was asked, as far as its log shows."""
    asked, choices = _asked(run), _all_reduces(run.nccl)
    backend = run.environment.get("backend")
    if backend not in (None, "nccl"):
        return f"ignored by {backend}"
    if asked == Combination():
        return ""
    if not choices:
        return "not known" if run.nccl is None or not run.nccl.reason else f"not known: {run.nccl.reason}"
    unlike = [*_unlike(choices, "algorithm", asked.algorithm), *_unlike(choices, "protocol", asked.protocol)]
    unlike += _other_channels(choices, asked.channels)
    return f"no: {'; '.join(unlike)}" if unlike else "yes"


def _unlike(choices: Sequence[Mapping[Hashable, object]], what: str, asked: str) -> Iterator[str]:
    """Name what NCCL chose in place of the one value that it was asked for; of a list it may take any."""
    wanted = asked.casefold().removeprefix("allreduce:")
    if not wanted.replace("_", "").isalnum():
        return
    others = dict.fromkeys(str(row[what]) for row in choices if _same_name(str(row[what])) != _same_name(wanted))
    if others:
        yield f"{what} {', '.join(others)} in place of {asked}"


def _same_name(text: str) -> str:
    """NCCL_ALGO takes NVLSTree and CollNetChain; the log has NVLS_TREE and COLLNET_CHAIN."""
    return text.replace("_", "").casefold()


def _other_channels(choices: Sequence[Mapping[Hashable, object]], asked: int) -> Iterator[str]:
    """Small messages take fewer channels than there are: the largest number counts."""
    ends = [(row["channel_low"], row["channel_high"]) for row in choices if pd.notna(row["channel_low"])]
    counts = [int(str(high)) - int(str(low)) + 1 for low, high in ends]
    if asked and counts and max(counts) != asked:
        yield f"at most {max(counts)} channels in place of {asked}"


def _why_none(run: Run) -> str:
    """Reason why a run has no measured case."""
    if (run.cases.status == OK).any():
        return ""
    failed = [str(reason) for reason in run.cases.reason if reason]
    ended = [str(culprit.get("how", "")) for end in run.failures for culprit in end.get("culprits", [])]
    warned = [f"NCCL: {warning}" for warning in (run.nccl.warnings[-1:] if run.nccl else ())]
    return "; ".join([*ended[-1:], *failed[:1], *warned]) or "not measured"


def _spelled_orders(runs: Sequence[Run], rows: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    """(letter, question, elements, order) of the first run of each letter; the largest parts first."""
    letters = set[str]()
    for run, letter in zip(runs, rows.order, strict=True):
        if not letter or letter in letters:
            continue
        letters.add(letter)
        found = _orders(run)
        for subject in dict.fromkeys(subject for subject, _, _ in found):
            own = sorted(((count, order) for of, order, count in found if of == subject), reverse=True)
            yield from ((letter, subject, f"{count:,.0f}", order) for count, order in own[:_ORDERS])
            if len(own) > _ORDERS:
                rest = sum(count for count, _ in own[_ORDERS:])
                yield letter, subject, f"{rest:,.0f}", f"{len(own) - _ORDERS} other orders"


def _gigabytes(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.3g}"
