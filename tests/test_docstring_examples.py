"""Runs every ``>>>`` example in the docstrings of ``src/tpdm``, so that no example is out of date."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def count_examples(path: Path) -> int:
    """Number of ``>>>`` lines in the docstrings of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    return sum(line.lstrip().startswith(">>>") for text in docstrings for line in text.splitlines())


COUNTS = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): count
    for path in sorted((SOURCE / "tpdm").rglob("*.py"))
    if (count := count_examples(path))
}


@pytest.mark.parametrize("name", COUNTS)
def test_examples_of_a_module_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module)
    assert sum(len(test.examples) for test in tests) == COUNTS[name], "an example that doctest does not find"
    for test in tests:
        output: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append)
        assert failed == 0, "".join(output)
