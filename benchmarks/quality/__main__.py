"""``python -m benchmarks.quality NAME``: trains where nothing is kept, evaluates, and writes results and page."""

from benchmarks.command import main
from benchmarks.quality.experiments import EXPERIMENTS

if __name__ == "__main__":
    main("benchmarks.quality", EXPERIMENTS)
