"""What went on around a run that its times may have suffered from, in plain words."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
Trouble = Callable[[Facts, Facts], tuple[float, str] | None]
"""(what was seen, where) to how bad it was, and how to say it; None where it was not."""

_CROWDED = 0.2
"""Of one CPU: what the others on a host may take before it is told."""
_STOLEN = 0.01
"""Of all CPUs' time."""
_HELD = 0.01
"""Of the run's time."""
_BUSY = 5
"""Percent of the moment before the run in which a GPU worked for somebody else."""
_NAMED = 3
_DEVICE = {
    "device_name": "model",
    "compute_capability": "compute capability",
    "memory_bytes": "bytes of memory",
    "power_limit_w": "power limit in W",
}
"""Facts of a rank's device, and what they are called."""
_SLOWER_CPU, _SLOWER_GPU = 0.8, 0.95
"""Of the clock before the run: below it, afterwards, the clock has changed. A CPU's clock moves much of its own accord."""
_WORKS = 10
"""Percent of utilization, below which a GPU may have the clock of an idle one."""


def doubts(environment: Facts, *, sampled: bool = False) -> list[str]:
    """Reasons to trust the run's times less; none where nothing was seen. `environment` is environment.json.

    sampled: GPUs were read while the cases ran, so that clocks before and after the cases say nothing more.
    """
    return [*_of_hosts(environment), *_unlike_ranks(environment), *_of_launches(environment, sampled=sampled)]


def _of_hosts(environment: Facts) -> Iterator[str]:
    """How the machines are set."""
    for host in environment.get("hosts", []):
        name, threads = host.get("host"), _threads(environment, host.get("host"))
        ruled = {governor: cpus for governor, cpus in (host.get("governors") or {}).items() if governor != "performance"}
        if ruled:
            told = ", ".join(f"{governor} on {cpus}" for governor, cpus in ruled.items())
            yield f"The clock of {name}'s CPUs follows their load: governor {told} of {host.get('cpus')}."
        quota = host.get("cpu_quota")
        if quota is not None and quota < threads:
            yield f"On {name}, {threads} threads share a quota of {quota:g} CPUs."
        elif threads > (host.get("cpus") or threads):
            yield f"On {name}, {threads} threads share {host['cpus']} CPUs."
        yield from _pinned(name, _ranks(environment, name), host.get("cpus"))


def _pinned(host: str | None, ranks: Sequence[tuple[int, Facts]], cpus: int | None) -> Iterator[str]:
    """Name ranks of a host that may run on too few CPUs for their threads; of sets of CPUs in each other, the smallest."""
    allowed = {rank: _cpus(facts["cpus"]) for rank, facts in ranks if facts.get("cpus")}
    threads = {rank: _own_threads(facts) for rank, facts in ranks}
    named: list[frozenset[int]] = []
    for shared in sorted(_unions(allowed.values()), key=lambda one: (len(one), min(one))):
        held = [rank for rank, own in allowed.items() if own <= shared]
        if len(shared) >= (cpus or len(shared) + 1) or any(smaller < shared for smaller in named):
            continue
        if (total := sum(threads[rank] for rank in held)) > len(shared):
            named.append(shared)
            who = f"rank {held[0]} has" if len(held) == 1 else f"ranks {_spelled(held)} have"
            where = f"{len(shared)} CPU{'s' * (len(shared) > 1)} ({_spelled(shared)})"
            yield (
                f"On {host}, {who} {total} threads and may run on {where}: their times include waiting for each other. "
                "Give each rank CPUs of its own (taskset, srun --cpu-bind, the container's cpuset), or lower threads_per_rank."
            )


def _unions(sets: Iterable[frozenset[int]]) -> set[frozenset[int]]:
    """Return the different sets, and the unions of those that overlap, directly or by way of others."""
    different, joined = set(sets), list[frozenset[int]]()
    for one in different:
        apart = [other for other in joined if not other & one]
        joined = [*apart, one.union(*(other for other in joined if other & one))]
    return different | set(joined)


def _cpus(spelled: str) -> frozenset[int]:
    """Return the CPUs of a list such as 0-3,8."""
    ends = (part.partition("-") for part in spelled.split(","))
    return frozenset(cpu for first, _, last in ends for cpu in range(int(first), int(last or first) + 1))


def _spelled(numbers: Iterable[int]) -> str:
    """Spell numbers as such a list."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _of_launches(environment: Facts, *, sampled: bool) -> Iterator[str]:
    """What happened meanwhile: each kind of trouble is told of the host, or the rank, and the launch that it was worst in."""
    notes = environment.get("conditions", [])
    hosts = {host.get("host"): host for host in environment.get("hosts", [])}
    on_hosts = [(seen, hosts.get(_host_of(environment, seen), {})) for note in notes for seen in note.get("hosts", [])]
    on_ranks = [
        (seen | {"window_s": _window(note)}, {"rank": rank})
        for note in notes
        for rank, seen in enumerate(note.get("ranks", []))
    ]
    for trouble in (_crowded, _stolen, _counted):
        yield from _worst(trouble, on_hosts, "host")
    of_gpus = () if sampled else (_slower_gpu, _held)
    for trouble in (_slower_cpu, *of_gpus, _shared):
        yield from _worst(trouble, on_ranks, "rank")


def _unlike_ranks(environment: Facts) -> Iterator[str]:
    """Name ranks whose GPUs, or whose variables of communication, are not those of the others."""
    ranks = dict(enumerate(environment.get("ranks", [])))
    on_gpus = {place: rank for place, rank in ranks.items() if str(rank.get("device", "")).startswith("cuda")}
    for key, name in _DEVICE.items():
        values = _by_value({place: rank.get(key) for place, rank in on_gpus.items()})
        if len(values) > 1:
            spelled = "; ".join(f"{value} on {_who(places)}" for value, places in values.items())
            yield f"The GPUs of the ranks differ in {name}: {spelled}. A step takes as long as on the slowest one."
            break  # another model differs in all of these
    for variable, values in (environment.get("variables_differ") or {}).items():
        pairs = "; ".join(f"{value} on rank{'s' * (not str(places).isdigit())} {places}" for value, places in values.items())
        yield f"{variable} differs between the ranks: {pairs}."


def _by_value(values: Mapping[int, Any]) -> dict[Any, list[int]]:
    """Map each known value to the ranks that have it."""
    found: dict[Any, list[int]] = {}
    for rank, value in values.items():
        if value is not None:
            found.setdefault(value, []).append(rank)
    return found


def _who(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {_spelled(ranks)}"


def _worst(trouble: Trouble, seen: Sequence[tuple[Facts, Facts]], kind: str) -> Iterator[str]:
    found = [(*told, where.get(kind)) for one, where in seen if (told := trouble(one, where))]
    if found:
        others = len({place for *_, place in found}) - 1
        yield max(found)[1] + (f" {others} other {kind}{'s' * (others > 1)} likewise." if others else "")


def _crowded(seen: Facts, where: Facts) -> tuple[float, str] | None:
    window, others = seen.get("window_s") or 0.0, seen.get("others", [])
    named = sum(process.get("cpu_s") or 0.0 for process in others)
    taken = max(named, (seen.get("busy_s") or 0.0) - (seen.get("own_s") or 0.0))
    if not window or taken < _CROWDED * window:
        return None
    busiest = [f"{_process(one)}, {(one.get('cpu_s') or 0.0) / window:.2f})" for one in others[:_NAMED]]
    told = f"; of those that were there until its end: {', '.join(busiest)}" if busiest else ", none of them seen from here"
    share = f"{taken / window:.2f} of {where.get('cpus')} CPUs"
    return taken / window, f"On {where.get('host')}, other processes took {share} during the run{told}."


def _stolen(seen: Facts, where: Facts) -> tuple[float, str] | None:
    available = (seen.get("window_s") or 0.0) * (where.get("cpus") or 1)
    share = (seen.get("stolen_s") or 0.0) / available if available else 0.0
    return (
        (share, f"The hypervisor took {share:.1%} of {where.get('host')}'s CPU time for others.") if share > _STOLEN else None
    )


def _counted(seen: Facts, where: Facts) -> tuple[float, str] | None:
    quota, heat = seen.get("quota_throttles") or 0, seen.get("cpu_throttles") or 0
    told = [f"held up by their quota {quota} times"] * (quota > 0) + [f"slowed down for heat {heat} times"] * (heat > 0)
    return (quota + heat, f"{where.get('host')}'s CPUs were {' and '.join(told)}.") if told else None


def _slower_cpu(seen: Facts, where: Facts) -> tuple[float, str] | None:
    return _fell("cpu_mhz", "CPU", _SLOWER_CPU, seen, where)


def _slower_gpu(seen: Facts, where: Facts) -> tuple[float, str] | None:
    """Only where the GPU was busy at both moments: an idle one lowers its clock by itself."""
    states = [seen.get(moment, {}) for moment in ("before", "after")]
    if any(state.get("idle") or (state.get("utilization_percent") or 0) < _WORKS for state in states):
        return None
    return _fell("sm_mhz", "GPU", _SLOWER_GPU, seen, where)


def _fell(clock: str, name: str, least: float, seen: Facts, where: Facts) -> tuple[float, str] | None:
    before, after = (seen.get(moment, {}).get(clock) for moment in ("before", "after"))
    if before and after and after < least * before:
        return before / after, f"Rank {where['rank']}'s {name} clock fell from {before:.0f} to {after:.0f} MHz."
    return None


def _held(seen: Facts, where: Facts) -> tuple[float, str] | None:
    """Below the clocks that were set for the device: for how long where the driver counts it, else why in the end."""
    before, after = (seen.get(moment, {}).get("slowed_s") or {} for moment in ("before", "after"))
    held = {cause: total - (before.get(cause) or 0.0) for cause, total in after.items() if total is not None}
    told = [f"{seconds:.1f} s by {cause}" for cause, seconds in held.items() if seconds > _HELD * seen["window_s"]]
    told += (seen.get("after", {}).get("slowed_by") or []) if not held else []
    return (sum(held.values()), f"Rank {where['rank']}'s GPU ran at reduced clocks: {', '.join(told)}.") if told else None


def _shared(seen: Facts, where: Facts) -> tuple[float, str] | None:
    """By processes that are not the run's. Where pids are another namespace's, only a busy device tells of them."""
    listed = seen.get("device_processes") or {}
    others = listed.get("others", []) if listed.get("own_pid_seen") else []
    names = [f"{_process(one)})" for one in others[:_NAMED]]
    busy = seen.get("before", {}).get("utilization_percent") or 0
    told = [f"is also used by {', '.join(names)}"] * bool(names) + [f"was {busy} % busy before the run"] * (busy >= _BUSY)
    if not told:
        return None
    return len(others) + busy, f"Rank {where['rank']}'s GPU {' and '.join(told)}."


def _process(one: Facts) -> str:
    """Spell a process; the bracket stays open."""
    return f"{one.get('name')} (pid {one.get('pid')}"


def _ranks(environment: Facts, host: str | None) -> list[tuple[int, Facts]]:
    return [(place, rank) for place, rank in enumerate(environment.get("ranks", [])) if rank.get("host") == host]


def _threads(environment: Facts, host: str | None) -> int:
    return sum(_own_threads(rank) for _, rank in _ranks(environment, host))


def _own_threads(rank: Facts) -> int:
    return 1 if rank.get("threads") is None else int(rank["threads"])


def _host_of(environment: Facts, seen: Facts) -> str | None:
    """The name of the host that a rank spoke for."""
    ranks, rank = environment.get("ranks", []), seen.get("rank") or 0
    return ranks[rank].get("host") if 0 <= rank < len(ranks) else None


def _window(note: Facts) -> float:
    return max((host.get("window_s") or 0.0 for host in note.get("hosts", [])), default=0.0)
