"""The trade between ways of aggregating: what each takes in time and memory, and how far its gradient is from the true one."""

import pandas as pd

from harness.report.discrepancy import WORST
from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import mebibytes, milliseconds, number
from harness.schema.record import REFERENCE

BUFFERS = 2
"""Gradient-sized buffers that a case may take above the baseline, beside what its options declare."""


def trade(run: Run, costs: pd.DataFrame, discrepancies: pd.DataFrame) -> pd.DataFrame:
    """One row a measured case: seconds of a step, bytes above the baseline and allowed, relative L2. Indexed by case_id.

    Empty where the run has one way of aggregating alone.
    """
    if costs.empty or discrepancies.empty or run.cases.aggregation.nunique() < 2:
        return pd.DataFrame()
    cases = run.cases.set_index("case_id")
    clock = "cuda_event" if "cuda_event.step.median" in costs else "host"  # on CUDA the host may see the launch alone
    far = discrepancies[discrepancies.against == REFERENCE].set_index("case_id")[WORST]
    return labelled(run.cases).join(
        pd.DataFrame(
            {
                "step_s": costs[f"{clock}.step.median"],
                "above_baseline_bytes": cases.above_baseline_bytes,
                "gradient_bytes": cases.gradient_bytes,
                "declared_bytes": cases.declared_bytes,
                "allowed_bytes": BUFFERS * cases.gradient_bytes + cases.declared_bytes,
                "relative_l2": far,
            }
        ).reindex(costs.index),
        how="right",
    )


def labels_of(rows: pd.DataFrame) -> list[str]:
    """The columns that name a case."""
    return list(rows.columns[: list(rows.columns).index("step_s")])


def trade_table(rows: pd.DataFrame) -> pd.DataFrame:
    """For a person."""
    return rows[labels_of(rows)].assign(
        **{
            "step, ms": rows.step_s.map(milliseconds),
            "above the baseline, MiB": rows.above_baseline_bytes.map(mebibytes),
            "gradient, MiB": rows.gradient_bytes.map(mebibytes),
            "declared, MiB": rows.declared_bytes.map(mebibytes),
            "allowed, MiB": rows.allowed_bytes.map(mebibytes),
            "relative L2": rows.relative_l2.map(number),
        }
    )
