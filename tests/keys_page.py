"""Every configuration key with what it affects: `python -m tests.keys_page` writes docs/keys.md."""

from collections.abc import Iterable, Iterator

from harness.schema.arguments import Arguments
from harness.schema.config import BenchmarkConfig
from harness.schema.keys import AFFECTS, Key, keys_of
from harness.schema.launcher import KINDS
from launch.flags import flag, flagged, metavar
from tests.running import ROOT

PAGE = ROOT / "docs" / "keys.md"
_HEAD = """# Configuration keys and what they affect

`python -m tests.keys_page` writes this page from the declarations in harness/schema, from which --help is printed, too; a test
compares them. A key affects one of:

- **results**: other bits or other numbers in the gradients, under at least one option; times may change with them. The number
  of iterations is among them because PowerSGD carries a residual from one iteration to the next.
- **times**: other times only.
- **conduct**: how the run proceeds. No figure depends on it. What the host, the launcher and the container contribute to
  figures is in environment.json.
- **location**: where things lie.
- **selection**: which cases, probes, launches and analyses there are.

A comparison of two runs lists the keys of *results* and *times* that differ, and the report of several runs warns about
them. `--resume` takes new values of *conduct* keys; another value of any other key needs `--accept-changes`. `config_sha256`
in environment.json is a digest of *results*, *times* and *selection*."""


def page() -> str:
    """Return the text of the page."""
    return "\n".join([_HEAD, *_tables(), *_arguments()]) + "\n"


def _tables() -> Iterator[str]:
    keys = [*keys_of(BenchmarkConfig), *(each for kind in KINDS for each in _launcher_keys(kind))]
    for affects in AFFECTS:
        yield f"\n## {affects.capitalize()}\n"
        yield from _table(each for each in keys if each.affects == affects)


def _launcher_keys(kind: str) -> Iterator[Key]:
    for each in keys_of(KINDS[kind], "launch."):
        yield Key(each.name, each.default, each.affects, f"{each.help} (`launch={kind}`)")


def _table(keys: Iterable[Key]) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "| --- | --- | --- |"
    for each in keys:
        spelled = f"`{each.spelled}`" if each.help and each.spelled else ""
        yield f"| `{each.name}` | {spelled} | {(each.help or 'options: `--help` lists them').replace('|', chr(92) + '|')} |"


def _arguments() -> Iterator[str]:
    yield "\n## Arguments of the command\n"
    yield "They say what to do with a configuration, and are not written to config.yaml. `resume=RUN_DIR`, `dry_run=true` and"
    yield "so on, without dashes, are accepted too, as is `world_sizes` or `nccl_matrix` in an experiment.\n"
    yield "| argument | meaning |"
    yield "| --- | --- |"
    yield from (f"| `{flag(each.name)}{metavar(each)}` | {each.help} |" for each in flagged())
    yield from (f"| `{each.name}={each.spelled}` | {each.help} |" for each in keys_of(Arguments) if "." in each.name)


if __name__ == "__main__":
    PAGE.write_text(page())
