"""Stand-in for NVIDIA's pynvml: two GPUs whose state is scripted by NVML_SCRIPT, a JSON file; put this folder on PYTHONPATH.

The file has for each UUID `sm_mhz`, `power_mw`, `temperature_c`, `utilization` and `reasons` (bits); `old`: true where the
driver has only the older function for reasons. It is read again at each question.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
nvmlClocksThrottleReasonGpuIdle = 1  # noqa: N816
nvmlClocksThrottleReasonSwPowerCap = 4  # noqa: N816
nvmlClocksEventReasonSwPowerCap = 4  # noqa: N816
nvmlClocksEventReasonGpuIdle = 1  # noqa: N816
nvmlClocksEventReasonHwThermalSlowdown = 64  # noqa: N816
nvmlClocksEventReasonNone = 0  # noqa: N816
nvmlClocksEventReasonAll = 69  # noqa: N816


class NVMLError(Exception):
    """As NVIDIA's."""


def nvmlInit() -> None:  # noqa: N802
    if "NVML_SCRIPT" not in os.environ:
        raise NVMLError("Driver Not Loaded")


def _script() -> dict[str, Any]:
    return json.loads(Path(os.environ["NVML_SCRIPT"]).read_text())  # type: ignore[no-any-return]


def _state(handle: str) -> dict[str, Any]:
    return _script()[handle]  # type: ignore[no-any-return]


def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
    name = uuid.removeprefix("GPU-")
    if name not in _script():
        raise NVMLError("Not Found")
    return name


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: str) -> str:  # noqa: N802
    raise NVMLError("Invalid Argument")


def nvmlDeviceGetClockInfo(handle: str, kind: int) -> int:  # noqa: N802
    return int(_state(handle)["sm_mhz"]) if kind == NVML_CLOCK_SM else 2619


def nvmlDeviceGetPowerUsage(handle: str) -> int:  # noqa: N802
    return int(_state(handle)["power_mw"])


def nvmlDeviceGetTemperature(handle: str, sensor: int) -> int:  # noqa: N802
    return int(_state(handle)["temperature_c"])


def nvmlDeviceGetUtilizationRates(handle: str) -> SimpleNamespace:  # noqa: N802
    return SimpleNamespace(gpu=_state(handle)["utilization"], memory=0)


def nvmlDeviceGetCurrentClocksEventReasons(handle: str) -> int:  # noqa: N802
    if _state(handle).get("old"):
        raise NVMLError("Function Not Found")
    return int(_state(handle)["reasons"])


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: str) -> int:  # noqa: N802
    return int(_state(handle)["reasons"])
