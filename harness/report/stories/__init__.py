"""Three published texts, and what a run says of their claims: `tell` finds the one that a configuration names."""

from harness.report.frame import Run
from harness.report.stories import gradient_sums, reduction_modes, unequal_derivatives
from harness.report.stories.claims import claims_table
from harness.report.tables import Table

_STORIES = {
    "reduction_modes": reduction_modes,
    "gradient_sums": gradient_sums,
    "unequal_derivatives": unequal_derivatives,
}


def tell(run: Run) -> list[Table]:
    """The verdict on every claim of the text, and the text's own tables with this run's numbers; nothing without a story."""
    if run.config.story not in _STORIES:
        return []
    story = _STORIES[run.config.story]
    return [claims_table(story.TITLE, story.CLAIMS, run), *story.tables(run)]
