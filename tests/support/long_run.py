"""The small problem, for as long as it is left alone: ``python -m tests.support.long_run FOLDER UPDATES``.

Ends as the command line does: one sentence and exit code 2.
"""

import os
import sys
from pathlib import Path

import torch

from tests.support.gaussian_problem import make_small_problem
from tpdm.core.errors import TpdmError
from tpdm.training.distributed.context import init_distributed
from tpdm.training.distributed.heartbeat import heartbeat
from tpdm.training.loop import train_loop


def main(folder: Path, updates: int) -> None:
    torch.set_num_threads(1)
    with init_distributed("cpu") as team, heartbeat(team):
        (folder / f"pid-{team.rank}").write_text(str(os.getpid()))
        train_loop(*make_small_problem(folder, rl={"updates": updates}, checkpoint={"every": 1}), folder, team)


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except TpdmError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
