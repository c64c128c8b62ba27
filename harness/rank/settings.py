"""Settings of the process: what a case's own code can change for the cases after it, and how it is put back."""

import contextlib
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import deterministic

Setting = tuple[str, Callable[[], Any], Callable[[Any], object]]
"""(name, how it is read, how it is written)."""
UNREADABLE = "unreadable"
"""torch refuses to read some precisions after the older and the newer way of setting them have been mixed."""
_INFERENCE: list[contextlib.AbstractContextManager[Any]] = []
"""Inference modes that were entered to undo others: one that is no longer referenced ends."""


@dataclass(frozen=True)
class Settings:
    """All settings, and the states of the random number generators, at one moment."""

    values: tuple[Any, ...]
    states: tuple[Any, ...]

    @classmethod
    def now(cls) -> "Settings":
        """Read them all."""
        return cls(tuple(_read(read) for _, read, _ in SETTINGS), tuple(read() for read, _ in _generators()))

    def put_back(self) -> list[str]:
        """Restore them all; return the settings that had changed, as `grad mode from True to False`.

        Raises nothing: an error would hide the one of the user's code, and leave the settings after it as they are.
        """
        changed = []
        for (name, read, write), before in zip(SETTINGS, self.values, strict=True):
            after = _read(read)
            if after != before:
                failure = _failure(write, before) if before != UNREADABLE else ""
                changed.append(f"{name} from {before} to {after}{failure}")
        for state, (_, write) in zip(self.states, _generators(), strict=False):  # numpy may have been imported meanwhile
            if failure := _failure(write, state):
                changed.append(f"a random number generator{failure}")
        return changed


@contextlib.contextmanager
def restored(changed: list[str]) -> Iterator[None]:
    """Put back the settings that the block changes, and add them to `changed`, also where it raises."""
    before = Settings.now()
    try:
        yield
    finally:
        changed += before.put_back()


def _failure(write: Callable[[Any], object], value: Any) -> str:
    """Write; return the words on what went wrong, if anything did: CPUs, say, may have been taken from this process."""
    try:
        write(value)
    except Exception as error:
        return f" (and could not be put back: {type(error).__name__}: {error})"
    return ""


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:
        return UNREADABLE


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


class _Precision(str):
    """`none` computes as `ieee` does, and the older way of setting precisions leaves the one for the other."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return {str(self), str(other)} <= {"none", "ieee"} or str(self) == str(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]


def _precision(owner: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: _Precision(owner.fp32_precision), lambda value: setattr(owner, "fp32_precision", str(value))


def _deterministic() -> str:
    if not torch.are_deterministic_algorithms_enabled():
        return "off"
    return "warn only" if torch.is_deterministic_algorithms_warn_only_enabled() else "on"


def _set_deterministic(mode: str) -> None:
    torch.use_deterministic_algorithms(mode != "off", warn_only=mode == "warn only")


def _set_anomaly(modes: tuple[bool, bool]) -> None:
    torch.autograd.set_detect_anomaly(*modes)


def _set_inference(mode: bool) -> None:
    entered = torch.inference_mode(mode)
    entered.__enter__()
    _INFERENCE.append(entered)


def _set_default_device(device: torch.device) -> None:
    if device.type != "cpu":
        torch.set_default_device(device)
        return
    torch.set_default_device(None)
    with contextlib.suppress(AttributeError):  # torch 2.8 cannot read the default device once it has been None
        del torch._GLOBAL_DEVICE_CONTEXT.device_context


def _cuda_device() -> int:
    """Number of the current device. A process that does not use CUDA yet is on 0, and to ask torch would initialize it."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0


def _flushes() -> bool:
    """True if denormal numbers become zero. torch has no other way to ask."""
    return float(torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 0.5) == 0


def _autocast(device: str) -> Iterator[Setting]:
    yield (f"autocast of {device}", lambda: torch.is_autocast_enabled(device), partial(torch.set_autocast_enabled, device))
    yield (f"autocast dtype of {device}", lambda: torch.get_autocast_dtype(device), partial(torch.set_autocast_dtype, device))


def _attention() -> Iterator[Setting]:
    """Kernels of scaled_dot_product_attention that may be chosen."""
    cuda = torch.backends.cuda
    for kernel in ("flash", "mem_efficient", "math", "cudnn"):
        yield f"{kernel} attention", getattr(cuda, f"{kernel}_sdp_enabled"), getattr(cuda, f"enable_{kernel}_sdp")


def _precisions() -> Iterator[Setting]:
    """The older setting first: it sets some of the others."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    yield "float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    yield ("CUDA matmul's allow_tf32", *_attribute(cuda.matmul, "allow_tf32"))
    yield ("cuDNN's allow_tf32", *_attribute(cudnn, "allow_tf32"))
    if not hasattr(torch.backends, "fp32_precision"):  # torch 2.8
        return
    owners = {"CUDA matmul": cuda.matmul} | {f"cuDNN {name}": getattr(cudnn, name) for name in ("conv", "rnn")}
    owners |= {f"mkldnn {name}": getattr(mkldnn, name) for name in ("matmul", "conv", "rnn")}
    for name, owner in {"all backends": torch.backends, **owners}.items():
        yield (f"fp32_precision of {name}", *_precision(owner))


def _settings() -> Iterator[Setting]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    yield "inference mode", torch.is_inference_mode_enabled, _set_inference
    yield "grad mode", torch.is_grad_enabled, torch.set_grad_enabled
    yield "default device", torch.get_default_device, _set_default_device
    yield "default dtype", torch.get_default_dtype, torch.set_default_dtype
    yield "threads", torch.get_num_threads, torch.set_num_threads
    yield (
        "anomaly mode and its check for NaN",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        _set_anomaly,
    )
    yield "deterministic algorithms", _deterministic, _set_deterministic
    yield ("filling of uninitialized memory", *_attribute(deterministic, "fill_uninitialized_memory"))
    yield "flushing of denormal numbers", _flushes, torch.set_flush_denormal
    for device in ("cpu", "cuda"):
        yield from _autocast(device)
    yield "autocast cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield from _precisions()
    for flag in ("enabled", "benchmark", "deterministic", "benchmark_limit"):
        yield (f"cuDNN's {flag}", *_attribute(cudnn, flag))
    for flag in ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"):
        yield (f"CUDA matmul's {flag}", *_attribute(matmul, flag))
    yield from _attention()
    yield ("oneDNN", *_attribute(torch.backends.mkldnn, "enabled"))
    yield "garbage collection", gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()
    if hasattr(os, "sched_getaffinity"):  # Linux
        yield "allowed CPUs", lambda: sorted(os.sched_getaffinity(0)), partial(os.sched_setaffinity, 0)
    if torch.cuda.is_available():
        yield "CUDA device", _cuda_device, torch.cuda.set_device


SETTINGS: list[Setting] = list(_settings())


def _generators() -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Random number generators that a model may draw from without one of its own; numpy's where it has been imported."""
    yield torch.get_rng_state, torch.set_rng_state
    yield random.getstate, random.setstate
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield torch.cuda.get_rng_state, torch.cuda.set_rng_state
    if numpy := sys.modules.get("numpy"):
        yield numpy.random.get_state, numpy.random.set_state
