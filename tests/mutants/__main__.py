"""`make mutants`: plant each defect in a copy of the tree, and ask if `make test` fails there.

The suite runs once under coverage. Then each mutant runs with `-x` the tests that executed its function, cheapest first. Two
mutants run at a time. `make mutants ARGS="NAME NAME"` runs some. caught.md holds the last outcome of each.
"""

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants.attempt import Outcome, attempt
from tests.mutants.measure import Measured
from tests.mutants.planted import MUTANTS, Mutant

CAUGHT = Path(__file__).parent / "caught.md"
_AT_ONCE = 2
_MAY_SURVIVE = 2


def main(arguments: Sequence[str], suite: Sequence[str] = (), table: Path = CAUGHT) -> int:
    """Return 1 where more than two of the mutants survive, or one cannot be tried. `suite`: files to test; default: all."""
    begun = time.monotonic()
    options = _parse(arguments)
    chosen = [mutant for mutant in MUTANTS if mutant.name in (options.names or [one.name for one in MUTANTS])]
    with ExitStack() as stack:
        folder = options.coverage or Path(stack.enter_context(TemporaryDirectory(prefix="mutants")))
        measured = Measured.of(folder.absolute(), suite)
        for test in [name for name, test in measured.tests.items() if test.failed]:
            print(f"left out, because it fails in the unchanged tree: {test}")
        print(f"{len(measured.tests)} tests measured after {time.monotonic() - begun:.0f} s", flush=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            outcomes = list(pool.map(lambda mutant: _tried(mutant, measured, options), chosen))
    table.write_text(_table(table, outcomes))
    caught, errors = (sum(one.verdict == verdict for one in outcomes) for verdict in ("caught", "error"))
    print(f"{caught} of {len(outcomes)} caught, {errors} not tried, in {time.monotonic() - begun:.0f} s")
    return int(len(outcomes) - caught > _MAY_SURVIVE or errors > 0)


def _parse(arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(prog="python -m tests.mutants", description="Ask if the tests notice planted defects.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants of tests/mutants/planted.py; default: all")
    parser.add_argument("--coverage", type=Path, metavar="FOLDER", help="keep the clean run there, and reuse it the next time")
    parser.add_argument("--rest", action="store_true", help="where all these tests pass, run the others too")
    parser.add_argument(
        "--limit", type=float, default=300.0, metavar="S", help="no test of a mutant starts later; default: 300"
    )
    options = parser.parse_args(arguments)
    for name in set(options.names) - {mutant.name for mutant in MUTANTS}:
        parser.error(f"{name}: unknown mutant; accepted: the names in tests/mutants/planted.py")
    return options


def _tried(mutant: Mutant, measured: Measured, options: Namespace) -> Outcome:
    outcome = attempt(mutant, measured, options.limit, rest=options.rest)
    words = {"caught": f"caught by {outcome.note}", "survived": f"SURVIVED: {outcome.note}"}
    print(f"{mutant.name}: {words.get(outcome.verdict, f'NOT TRIED: {outcome.note}')} ({outcome.seconds:.0f} s)", flush=True)
    if outcome.message:
        print(f"    {outcome.message}", flush=True)
    return outcome


def _table(path: Path, outcomes: Sequence[Outcome]) -> str:
    """Return the table with new rows for `outcomes`; mutants that did not run keep theirs."""
    cells = _cells(path) | {
        one.mutant: f"{'' if one.verdict == 'caught' else f'{one.verdict}: '}{one.note}" for one in outcomes
    }
    rows = [(mutant.name, mutant.defect, cells.get(mutant.name, "not run").replace("|", "\\|")) for mutant in MUTANTS]
    caught = sum(cell.startswith(("`", "hang")) for _, _, cell in rows)
    return "\n".join(
        [
            "# Planted defects and the tests that catch them",
            "",
            f"{caught} of {len(rows)} caught by `make test`. `make mutants` writes this file.",
            "",
            "| mutant | defect | failing test |",
            "| --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


def _cells(path: Path) -> dict[str, str]:
    """Read the last column of a table by its first."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[-1].replace("\\|", "|") for row in rows}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
