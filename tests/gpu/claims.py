"""Claims that were read in torch's source, measured on a GPU: each by itself, in one process. `python -m tests.gpu.claims`

Without a GPU, the claims that need none are measured on the CPU, and the others are named as skipped.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
TRIALS = 40
CALLS = 20
"""Calls in a graph."""
_HOLD_S = 0.002
"""The device is kept busy for so long that the host has launched a call before the device begins it."""
_WIDTHS = (64, 512, 4096)
_STICKY = """
import torch
for _ in range(2):
    try:
        torch.ones(4, device="cuda")[torch.tensor([9], device="cuda")].sum().item()
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0][:80], end="; ")
try:
    torch.ones(1, device="cuda").item()
    print("a later, correct call passes")
except Exception as error:
    print("a later, correct call raises", type(error).__name__)
"""

Claim = Callable[[], Any]
CLAIMS: dict[str, tuple[Claim, bool]] = {}
"""Function of each claim, and True if it needs a GPU."""


def needs_cuda(function: Claim) -> Claim:
    CLAIMS[function.__name__] = (function, True)
    return function


def anywhere(function: Claim) -> Claim:
    CLAIMS[function.__name__] = (function, False)
    return function


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """Return the host's seconds from the call to the end of its work."""
    synchronize()
    began = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - began


@needs_cuda
def workspaces() -> dict[str, int]:
    """Bytes allocated as cuBLAS makes its workspaces: in the thread of forward, and in that of backward."""
    layer, inputs = nn.Linear(64, 64, device=DEVICE), torch.randn(8, 64, device=DEVICE)
    allocated = {"before": torch.cuda.memory_allocated()}
    for moment in ("forward", "backward", "again"):
        outputs = layer(inputs)
        if moment != "forward":
            outputs.sum().backward()
            layer.zero_grad()
        del outputs
        synchronize()
        allocated[moment] = torch.cuda.memory_allocated()
    return allocated


@anywhere
def nccl_versions() -> str:
    """NCCL that torch was built with, and NCCL that is loaded."""
    found = re.search(r"(/\S*libnccl\.so\S*)", Path("/proc/self/maps").read_text())
    if found is None:
        return "no libnccl is loaded"
    number = ctypes.c_int()
    ctypes.CDLL(found[1]).ncclGetVersion(ctypes.byref(number))
    return f"built with {torch.cuda.nccl.version()}, loaded {number.value}"


@anywhere
def small_loss_counts() -> dict[str, list[float]]:
    """Counts of targets in nll_loss2d, which adds up in the dtype of the logits, sample by sample; "right" is exact."""
    lengths = torch.randint(1, 97, (64, 1, 1), generator=torch.Generator().manual_seed(0))
    targets = {"equal": torch.zeros(64, 1, 96, dtype=torch.int64)}
    targets["unequal"] = torch.where(torch.arange(96) < lengths, targets["equal"], -100)
    counts: dict[str, list[float]] = {}
    for name, target in targets.items():
        counts[f"{name}, right"] = [float((target >= 0).sum())]
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            logits = functional.log_softmax(torch.randn(64, 256, 1, 96, device=DEVICE, dtype=dtype), 1)
            calls = [torch.ops.aten.nll_loss2d_forward(logits, target.to(DEVICE), None, 1, -100) for _ in range(20)]
            counts[f"{name}, {dtype}"] = sorted({float(total) for _, total in calls})
    return counts


@anywhere
def deterministic() -> dict[str, str]:
    """Errors under deterministic algorithms; CUBLAS_WORKSPACE_CONFIG as it is set."""
    pools = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)).to(DEVICE)
    calls: dict[str, Callable[[], Tensor]] = {
        "convolution and pooling": lambda: pools(torch.randn(4, 1, 8, 8, device=DEVICE)),
        "matmul": lambda: torch.randn(8, 8, device=DEVICE, requires_grad=True) @ torch.randn(8, 8, device=DEVICE),
        **{f"sequence loss, {reduction}": partial(_sequence_loss, reduction) for reduction in _REDUCTIONS},
    }
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return {name: _outcome(call) for name, call in calls.items()}
    finally:
        torch.use_deterministic_algorithms(before)


_REDUCTIONS = ("none", "sum", "mean")


def _sequence_loss(reduction: str) -> Tensor:
    logits = torch.randn(4, 256, 96, device=DEVICE, requires_grad=True)
    return functional.cross_entropy(logits, torch.randint(256, (4, 96), device=DEVICE), reduction=reduction)


def _outcome(call: Callable[[], Tensor]) -> str:
    try:
        call().sum().backward()
    except RuntimeError as error:
        return str(error)[:90]
    return "ok"


@anywhere
def vmap_of_attention() -> dict[str, bool]:
    """True if the per-sample gradients of an encoder layer are finite."""
    layer = nn.TransformerEncoderLayer(32, 2, 128, dropout=0.0, batch_first=True, norm_first=True).to(DEVICE)
    mask = nn.Transformer.generate_square_subsequent_mask(96).to(DEVICE)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        options = {"src_mask": mask, "is_causal": True}
        outputs: Tensor = torch.func.functional_call(layer, parameters, (sample.unsqueeze(0),), options)
        return outputs.square().sum()

    finite = {}
    for dtype in (torch.float32, torch.float64):
        layer.to(dtype)
        parameters = {name: value.detach() for name, value in layer.named_parameters()}
        samples = torch.randn(4, 96, 32, device=DEVICE, dtype=dtype)
        gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, samples)
        finite[str(dtype)] = all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
    return finite


@anywhere
def attention_in_float32() -> str:
    """Distance of float32 attention from float64, TF32 off."""
    query, key, value = (torch.randn(8, 2, 96, 16, dtype=torch.float64, device=DEVICE) for _ in range(3))
    exact = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    rounded = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=True).double()
    return f"relative L2 {float((rounded - exact).norm() / exact.norm()):.2e}"


@anywhere
def launch_table() -> str:
    """Print a `TIMES` line for each call: us of its launch, on an idle device, behind other work, and in a graph."""
    x = torch.zeros(256, device=DEVICE)
    print_times("add_, 1 KiB", lambda: x.add_(1))
    for width in _WIDTHS if CUDA else _WIDTHS[:1]:
        print_times(f"MLP of width {width}, forward and backward", _mlp(width))
    return f"medians of {TRIALS}"


def print_times(name: str, call: Callable[[], object]) -> None:
    print(f"TIMES {name} {times(call)}", flush=True)


def times(call: Callable[[], object]) -> dict[str, float]:
    """Return medians of the host's launch of a call and, on a GPU, of the device's time on it, in us."""
    for _ in range(3):
        call()
    found = {"host, launch alone": _median(lambda: _launch(call))}
    if CUDA:
        found["events, idle device"] = _median(lambda: _between_events(call, 0))
        found["events, device held first"] = _median(lambda: _between_events(call, _HOLD_S))
        found[f"graph of {CALLS} calls, each"] = _graph(call)
    return {name: round(us, 2) for name, us in found.items()}


def _median(measure: Callable[[], float]) -> float:
    return sorted(measure() for _ in range(TRIALS))[TRIALS // 2] * 1e6


def _launch(call: Callable[[], object]) -> float:
    synchronize()
    began = time.perf_counter()
    call()
    launched = time.perf_counter()
    synchronize()
    return launched - began


def _between_events(call: Callable[[], object], hold_s: float) -> float:
    synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if hold_s:
        torch.cuda._sleep(int(hold_s * 2e9))  # cycles, at about 2 GHz
    first.record()
    call()
    last.record()
    synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1e3


def _graph(call: Callable[[], object]) -> float:
    """Return us of a call in a replayed graph; NaN where it cannot be captured."""
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    try:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            for _ in range(CALLS):
                call()
        return _median(lambda: _between_events(graph.replay, 0)) / CALLS
    except RuntimeError:
        traceback.print_exc()
        synchronize()
        return float("nan")


def _mlp(width: int) -> Callable[[], object]:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)).to(DEVICE)
    inputs, target = torch.randn(64, 64, device=DEVICE), torch.randint(10, (64,), device=DEVICE)

    def step() -> None:
        model.zero_grad(set_to_none=False)
        functional.cross_entropy(model(inputs), target).backward()

    return step


@anywhere
def one_rank() -> dict[str, bool]:
    """Collectives of one rank leave the tensor as it is. Their times come as `TIMES` lines."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    backend = "nccl" if CUDA else "gloo"
    group = dist.new_group(None, backend=backend, device_id=DEVICE if CUDA else None)
    x = torch.randn(1000, device=DEVICE)
    equal = {}
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.AVG) if CUDA else (dist.ReduceOp.SUM,):
        y = x.clone()
        dist.all_reduce(y, op=operation, group=group)
        equal[str(operation)] = torch.equal(x, y)
    y = x.clone()
    with dist._coalescing_manager(group):
        dist.all_reduce(y, group=group)
    equal["coalesced"] = torch.equal(x, y)
    for size in (2**10, 2**24):
        whole = torch.zeros(size // 4, device=DEVICE)
        own = torch.zeros_like(whole)
        name = f"{size >> 10} KiB, one rank"
        print_times(f"{backend} all_reduce, {name}", partial(dist.all_reduce, whole, group=group))
        print_times(f"{backend} all_gather, {name}", partial(dist.all_gather_into_tensor, whole, own, group=group))
    dist.destroy_process_group()
    return equal


@needs_cuda
def synchronize_of_the_cpu() -> str:
    """Calls of powerSGD_hook where a host has a GPU and the run is on the CPU."""
    torch.cuda.synchronize(torch.device("cpu"))
    return "passes"


@needs_cuda
def sticky_assert() -> str:
    """After a device-side assert every later CUDA call of the process fails."""
    return subprocess.run([sys.executable, "-c", _STICKY], capture_output=True, text=True, timeout=60).stdout.strip()


@anywhere
def rates() -> dict[str, float]:
    """Cost of a model of 1e9 parameters beside its steps: GB/s, and TFLOP/s of a float64 matrix product."""
    x, size = torch.randn(2**27 if CUDA else 2**22), 4096 if CUDA else 256
    y, square = x.to(DEVICE), torch.randn(size, size, device=DEVICE, dtype=torch.float64)
    product = partial(torch.mm, square, square)
    product()
    gb = x.nbytes / 1e9
    found = {"SHA-256, GB/s": gb / seconds(lambda: hashlib.sha256(x.numpy().data).digest())}
    found["copy on the host, GB/s"] = gb / seconds(x.clone)
    if CUDA:
        found["host to device, GB/s"] = gb / seconds(lambda: x.to(DEVICE))
        found["device to host, GB/s"] = gb / seconds(y.cpu)
    found["float64 matrix product, TFLOP/s"] = 2 * size**3 / seconds(product) / 1e12
    return {name: round(value, 3) for name, value in found.items()}


@needs_cuda
def allocator() -> str:
    """Memory that the caching allocator holds unused does not count as free."""
    x = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    del x
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return f"free {torch.cuda.mem_get_info()[0] >> 20} MiB, reserved and unused {unused >> 20} MiB"


@needs_cuda
def clocks() -> dict[str, str]:
    """SM clock and the reasons for throttling: idle, after work, and seconds later."""
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")

    def state() -> str:
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        return f"{pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)} MHz, reasons {reasons:#x}"

    found = {"idle": state()}
    square = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(60):
        square @ square
    synchronize()
    found["after work"] = state()
    for wait in (0.5, 1.0, 2.0):
        time.sleep(wait)
        found[f"idle for another {wait} s"] = state()
    return found


def main() -> None:
    name = torch.cuda.get_device_name(0) if CUDA else "CPU"
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {name}", flush=True)
    print(f"CUBLAS_WORKSPACE_CONFIG={os.environ.get('CUBLAS_WORKSPACE_CONFIG', '')}", flush=True)
    for claim, (function, on_gpu) in CLAIMS.items():
        began = time.perf_counter()
        print(f"CLAIM {claim}: {_result(function, on_gpu)} [{time.perf_counter() - began:.1f} s]", flush=True)


def _result(function: Claim, on_gpu: bool) -> Any:
    if on_gpu and not CUDA:
        return "skipped: needs a GPU"
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        return f"raised {type(error).__name__}: {str(error).splitlines()[0][:300]}"


if __name__ == "__main__":
    main()
