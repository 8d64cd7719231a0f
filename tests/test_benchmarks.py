"""The benchmark at real size, on tiny shapes: what it counts is there and in proportion."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real_size.py"


def test_real_size_counts_the_denoiser_and_the_tpm():
    run = subprocess.run([sys.executable, SCRIPT, "--tiny"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    assert [row["name"] for row in rows] == ["SD3, tiny", "FLUX.1, tiny"]
    for row, width in zip(rows, (128, 256), strict=True):
        # A pass multiplies every image token with most of the weights at least once.
        assert row["step_operations"] > row["denoiser_parameters"]
        assert row["share_pooled"] > 0
        assert row["replay_bytes"] == 2 * (2 * width * 8 * 8 + width)
