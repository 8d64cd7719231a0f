"""``python -m benchmarks.reliability NAME``: the table of benchmarks that break things and check promises."""

from benchmarks.command import Benchmark, main

BENCHMARKS = {
    "kill_resume": Benchmark(
        "whether a run that is killed in every part of an update ends with the same bits as one in one piece",
        "minutes on one core for 50 kills",
        "docs/results/kill-resume.json",
    ),
    "soak": Benchmark(
        "whether a server loses, doubles or leaks anything under good, bad, cancelled and abandoned requests at once",
        "a quarter of an hour on two cores",
        "docs/results/serving-soak.json",
        "serving.md",
        "results",
    ),
}

if __name__ == "__main__":
    main("benchmarks.reliability", BENCHMARKS)
