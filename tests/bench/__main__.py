"""`make bench`: what the harness itself costs. Ratios, measured in turn in one process or world, an A/A beside them."""

from tests.bench import busbw, comparison, diagnosis, overhead, same, scale, skew, startup, step, verdicts


def main() -> None:
    for bench in (comparison, step, busbw, skew, startup, overhead, scale, diagnosis, verdicts, same):
        bench.main()


if __name__ == "__main__":
    main()
