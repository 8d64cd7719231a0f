"""Pages made of the notebooks in docs/tutorials: their text, their code, and their committed outputs."""

from __future__ import annotations

import base64
import json
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for each notebook, with its pictures; called by MkDocs."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, images = convert(Path(notebook.abs_src_path))
        folder = PurePosixPath(notebook.src_uri).parent
        page = str(PurePosixPath(notebook.src_uri).with_suffix(".md"))
        files.append(File.generated(config, page, content=text))
        for name, content in images.items():
            files.append(File.generated(config, str(folder / name), content=content))
    return files


def convert(path: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its pictures by their names."""
    lines = [f'*This page is the notebook <a href="../{path.name}" download>{path.name}</a>.*']
    images: dict[str, bytes] = {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        lines.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(images) + 1}.png"
                images[name] = base64.b64decode("".join(data["image/png"]))
                lines.append(f"![Output of the cell above]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", []))):
                lines.append(f"```text\n{text.rstrip()}\n```")
    # The title comes first, then where the page is from.
    lines[:2] = [lines[1].partition("\n")[0], lines[0], lines[1].partition("\n")[2]]
    return "\n\n".join(lines) + "\n", images
