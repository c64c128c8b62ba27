"""Tables as text, whatever a run's texts contain."""

import io

import pandas as pd
import pytest
from rich.console import Console

from harness.report.tables import Table

HOSTILE = "a\x1b]0;owned\x07b\u202ec"


@pytest.mark.parametrize("part", ["title", "note", "name", "cell"])
def test_no_part_of_a_table_controls_the_terminal(part: str) -> None:
    texts = dict.fromkeys(("title", "note", "name", "cell"), "fine") | {part: HOSTILE}
    table = Table(texts["title"], pd.DataFrame({texts["name"]: [texts["cell"]]}), texts["note"])
    buffer = io.StringIO()
    table.print(Console(file=buffer, width=100, color_system=None))
    for text in (buffer.getvalue(), table.markdown()):
        assert "owned" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
