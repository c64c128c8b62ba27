"""Every metric against its definition, and one read for all of them."""

import math
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from harness.numerics import discrepancy
from harness.numerics.discrepancy import CHUNK, COMPILE_FROM, Discrepancy, compare
from harness.schema.record import METRICS
from tests.running import ENVIRONMENT, ROOT

PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.float64),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float64),
    (torch.float16, torch.float16),
]


def pair(dtype: torch.dtype, other: torch.dtype, size: int = 3 * CHUNK + 17) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    against = torch.randn(size, generator=generator, dtype=torch.float64)
    value = against * (1 + 1e-3 * torch.randn(size, generator=generator, dtype=torch.float64))
    return value.to(dtype), against.to(other)


@pytest.mark.parametrize(("dtype", "other"), PAIRS)
def test_metrics_are_what_they_say(dtype: torch.dtype, other: torch.dtype) -> None:
    value, against = pair(dtype, other)
    found = compare(value, against)
    x, y = value.double(), against.double()
    d = x - y
    alpha = float(x @ y / (y @ y))
    expected = {
        "max_abs": float(d.abs().max()),
        "l2": float(d.norm()),
        "against_l2": float(y.norm()),
        "relative_l2": float(d.norm() / y.norm()),
        "cosine": float(x @ y / (x.norm() * y.norm())),
        "scale": alpha,
        "scaled_residual": float((x - alpha * y).norm() / y.norm()),
        "mismatched_fraction": float((value != against.to(dtype)).double().mean()),
        "bitwise_equal": 0.0,
        "nonfinite": 0.0,
    }
    seen = dict(zip(METRICS, found.metrics(), strict=True))
    seen.pop("max_ulp")
    assert seen == pytest.approx(expected, rel=1e-9)


def test_a_nan_of_one_part_is_in_the_largest_difference_of_the_whole() -> None:
    sound, bad = (compare(torch.tensor([value]), torch.ones(1)) for value in (3.0, math.nan))
    assert math.isnan(bad.max_abs)
    assert math.isnan((sound + bad).max_abs)
    assert math.isnan((bad + sound).max_abs)
    assert (sound + sound).max_abs == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_loop_gives_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    for other in (dtype, torch.float64):
        value, against = pair(dtype, other, 100_003)
        value[7], against[8] = -0.0, 0.0
        by_torch = compare(value, against)
        monkeypatch.setattr(discrepancy, "COMPILE_FROM", 1)
        compiled = compare(value, against)
        monkeypatch.undo()
        assert compiled.metrics() == pytest.approx(by_torch.metrics(), rel=1e-10)
        assert (compiled.max_ulp, compiled.mismatched) == (by_torch.max_ulp, by_torch.mismatched)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ulps(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        pytest.importorskip("numba")
        monkeypatch.setattr(discrepancy, "COMPILE_FROM", 1)
    one, tiny = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype).nextafter(torch.ones(1, dtype=dtype))
    assert compare(one.nextafter(2 * one), one).max_ulp == 1
    assert compare(tiny, -tiny).max_ulp == 2
    zeros = compare(torch.zeros(1, dtype=dtype), -torch.zeros(1, dtype=dtype))
    assert (zeros.max_abs, zeros.max_ulp, zeros.mismatched) == (0, 0, 1)
    inf = torch.full((1,), math.inf, dtype=dtype)
    assert compare(inf, -inf).max_ulp == pytest.approx({4: 2 * 0x7F800000, 8: 2 * 0x7FF0000000000000}[dtype.itemsize])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_elements_are_counted(bad: float, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        pytest.importorskip("numba")
        monkeypatch.setattr(discrepancy, "COMPILE_FROM", 1)
    value = torch.ones(1000)
    value[[3, 500]] = bad
    found = compare(value, torch.ones(1000))
    assert (found.nonfinite, found.mismatched) == (2, 2)
    assert not math.isfinite(found.max_abs)
    assert not math.isfinite(found.relative_l2)
    assert len(found.metrics()) == len(METRICS)


def test_a_pure_scale_is_told_from_noise() -> None:
    """Cosine cannot see a factor; the sums must not lose it to cancellation either: 8 = missing 1/W."""
    against = torch.randn(10_001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = compare(8 * against, against)
    assert found.scale == 8
    assert found.scaled_residual < 4 * 7 * 2**-26, "dd and its part along are equal but for some 2^-52 of dd = 7^2 |against|^2"
    noisy = compare(against + 1e-9 * against.flip(0), against)
    exact = sum((Fraction(1e-9 * x)) ** 2 for x in against.tolist())
    assert noisy.dd == pytest.approx(float(exact), rel=1e-6)
    # 1 - cos = (|r|/|y|)^2 / 2, r the part of the difference that is orthogonal to y
    assert noisy.one_minus_cosine == pytest.approx(noisy.scaled_residual**2 / 2, rel=1e-6)
    assert noisy.one_minus_cosine < 1e-17


def test_parts_add_up_to_the_whole() -> None:
    value, against = pair(torch.float64, torch.float64, 999)
    parts = sum((compare(value[i : i + 100], against[i : i + 100]) for i in range(0, 999, 100)), Discrepancy())
    assert parts.metrics() == pytest.approx(compare(value, against).metrics(), rel=1e-12)


def test_nothing_and_zero() -> None:
    empty, zero = torch.empty(0), torch.zeros(5)
    assert compare(empty, empty).bitwise_equal
    assert compare(zero, zero).relative_l2 == 0
    assert compare(zero, zero).cosine == 1
    assert compare(zero + 1, zero).relative_l2 == math.inf
    assert math.isnan(compare(zero + 1, zero).cosine)
    with pytest.raises(ValueError, match="shapes"):
        compare(torch.zeros(2), torch.zeros(3))


MEASURE = """
import sys, torch
from pathlib import Path
from harness.numerics import discrepancy
if sys.argv[1] == "torch":
    discrepancy.COMPILE_FROM = 1 << 62
dtype = torch.float32
a, b = torch.ones(1 << 25), torch.ones(1 << 25, dtype=torch.float64 if sys.argv[2] == "mixed" else dtype)
discrepancy.compare(a[: 1 << 22], b[: 1 << 22])
peak = lambda: int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
discrepancy.compare(a, b)
print(peak() - before)
"""


@pytest.mark.parametrize("path", ["torch", "compiled"])
@pytest.mark.parametrize("dtypes", ["same", "mixed"])
def test_temporaries_stay_below_64_mib(path: str, dtypes: str) -> None:
    """Over two gradients of 128 MiB and more, and however large they are: chunks are of one size."""
    command = [sys.executable, "-c", MEASURE, path, dtypes]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024
    assert COMPILE_FROM < 1 << 25
