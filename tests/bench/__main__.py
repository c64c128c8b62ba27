"""`make bench`: what the harness itself costs. Ratios, measured in turn in one process or world, an A/A beside them."""

from tests.bench import busbw, comparison, overhead, same, scale, startup, step, verdicts


def main() -> None:
    for measure in (comparison.main, step.main, busbw.main, startup.main, overhead.main, scale.main, verdicts.main, same.main):
        measure()


if __name__ == "__main__":
    main()
