"""Questions to NVML, the library of NVIDIA's driver. No torch: the sampler, a process beside the ranks, asks them too."""

from collections.abc import Callable
from functools import cache
from typing import Any

_PREFIXES = ("nvmlClocksEventReason", "nvmlClocksThrottleReason")
"""Constants of newer and of older versions of NVML."""
_CURRENT = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
NO_SLOWDOWN = ("None", "All", "GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks", "DisplayClockSetting")
"""Nothing to do, or what a person has set."""
_IDLE = "GpuIdle"


def start_nvml() -> Any:
    """Return the module pynvml with NVML initialized; None where there is no NVML."""
    try:
        import pynvml  # not on the CPU: ranks start sooner without it

        pynvml.nvmlInit()
    except Exception:  # no such module; NVMLError and its kin, which are classes of that module: no driver, no permission
        return None
    return pynvml


def ask(nvml: Any, question: Callable[..., Any], *arguments: object, otherwise: Any = None) -> Any:
    """The answer; `otherwise` where this driver, this device, or this user has none."""
    try:
        return question(*arguments)
    except (nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)):
        return otherwise


def find_device(nvml: Any, uuid: str) -> Any:
    """Handle of a device, or of a MIG instance, by the UUID that torch gives; None where NVML does not know it."""
    handles = (ask(nvml, nvml.nvmlDeviceGetHandleByUUID, f"{kind}-{uuid}") for kind in ("GPU", "MIG"))
    return next((handle for handle in handles if handle is not None), None)


def whole_device(nvml: Any, handle: Any) -> Any:
    """Handle of the device that a MIG instance is part of, as an instance has no clocks of its own; else the handle."""
    return ask(nvml, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle, otherwise=handle)


def reason_bits(nvml: Any, handle: Any) -> int | None:
    """Reasons for the present clock, as bits; by the newer function, or by the older one where the driver has no other."""
    for name in _CURRENT:
        bits = ask(nvml, getattr(nvml, name), handle) if hasattr(nvml, name) else None
        if bits is not None:
            return int(bits)
    return None


def slowdowns(nvml: Any, bits: int) -> list[str]:
    """Names of those reasons for which the clock is lower than it was set to."""
    return [name for name, bit in _reasons(nvml).items() if name not in NO_SLOWDOWN and bits & bit]


def is_idle(nvml: Any, bits: int) -> bool:
    """True if the clock is low because the device has nothing to do."""
    return bool(bits & _reasons(nvml).get(_IDLE, 0))


@cache
def _reasons(nvml: Any) -> dict[str, int]:
    """Reason to its bit. The module has some 2,500 names, and each reading of a GPU needs these."""
    found: dict[str, int] = {}
    for prefix in _PREFIXES:
        own = {name.removeprefix(prefix): bit for name, bit in vars(nvml).items() if name.startswith(prefix)}
        found |= {name: bit for name, bit in own.items() if name not in found}
    return found
