"""Runs every benchmark of this folder, one process each."""

import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    for script in sorted(Path(__file__).parent.glob("*.py")):
        if script.name != "all.py":
            print(f"== {script.stem}", flush=True)
            subprocess.run([sys.executable, str(script)], check=True)
