"""Writes tests/slow_tests.txt, the tests that ``make test-fast`` leaves out.

    pytest -n auto --junitxml=runs/tests.xml
    python tests/support/slow_tests.py runs/tests.xml

A test function is slow if its cases take longer than LIMIT seconds together. All cases of a slow function are left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

LIMIT = 0.5
SLOW = Path(__file__).parents[1] / "slow_tests.txt"


def seconds_of_tests(report: Path) -> Counter[str]:
    """Seconds of every test function in a JUnit report, by its node id without parameters."""
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        if not case.get("classname"):  # a run that was interrupted
            continue
        parts = case.attrib["classname"].split(".")
        files = [Path(*parts[:length]).with_suffix(".py") for length in range(1, len(parts) + 1)]
        depth, file = next((length, file) for length, file in enumerate(files, 1) if file.is_file())
        name = "::".join([file.as_posix(), *parts[depth:], case.attrib["name"].partition("[")[0]])
        seconds[name] += float(case.attrib["time"])
    return seconds


def main() -> None:
    """Writes the list, sorted."""
    seconds = seconds_of_tests(Path(sys.argv[1]))
    slow = sorted(name for name, duration in seconds.items() if duration > LIMIT)
    SLOW.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")
    rest = sum(duration for name, duration in seconds.items() if duration <= LIMIT)
    print(f"{len(slow)} of {len(seconds)} test functions are slow; the others take {rest:.0f} s of one core")


if __name__ == "__main__":
    main()
