"""Runs the notebooks of docs/tutorials and keeps their outputs:  python docs/hooks/execute.py [--check] NOTEBOOK...

Cells run in this process, in a temporary folder. With ``--check`` nothing is written.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

COLORS = 96  # of a figure: fewer colors make smaller files


def execute(notebook: dict[str, Any]) -> None:
    """Runs the code cells in their order and replaces their outputs: what they print, and the figures they leave."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, 1):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {count}", "exec"), names)
        cell["execution_count"], cell["outputs"] = count, []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        for number in pyplot.get_fignums():
            data = {"image/png": _picture(pyplot.figure(number)), "text/plain": ["<Figure>"]}
            cell["outputs"].append({"output_type": "display_data", "metadata": {}, "data": data})
        pyplot.close("all")


def _picture(figure: Any) -> str:
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=80)
    Image.open(drawn).convert("RGB").quantize(COLORS).save(small, format="png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def main(arguments: list[str]) -> None:
    """Executes the notebooks named, or all of them."""
    places = [Path(word).resolve() for word in arguments if word != "--check"]
    places = places or sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
    for place in places:
        notebook = json.loads(place.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            execute(notebook)
            os.chdir(place.parent)
        if "--check" not in arguments:
            place.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
