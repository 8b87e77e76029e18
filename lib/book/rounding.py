"""How stored tables are rounded: a room of its own, so that a result's code hash covers it."""

from __future__ import annotations

import pandas as pd


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """Five significant digits: the rest is not looked at, and would fill the repository."""
    numbers = table.select_dtypes("float64")
    return table.assign(
        **{str(name): [float(f"{v:.5g}") for v in numbers[name]] for name in numbers}
    )
