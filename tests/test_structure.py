"""Sizes and names of the package's files; which package imports which is checked by import-linter (``make lint``)."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tpdm

SOURCE = Path(__file__).parents[1] / "src" / "tpdm"
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}
LONGEST_FILE, LONGEST_FUNCTION = 330, 100
MOST_AT_THE_TOP, MOST_OF_A_NAME = 12, 2


@pytest.mark.parametrize("name", FILES)
def test_no_file_and_no_function_is_long(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > LONGEST_FUNCTION] == []


def test_the_plan_is_seen_from_the_top():
    assert len([path for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"]) <= MOST_AT_THE_TOP
    assert {path.name for path in SOURCE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_a_name_leads_to_one_file_or_two():
    names = Counter(path.name for path in FILES.values() if not path.name.startswith("__"))
    assert {name: count for name, count in names.items() if count > MOST_OF_A_NAME} == {}


def test_no_file_of_the_package_is_ignored_and_left_out_of_the_wheel():
    ignored = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard", "--", "."]
    listed = subprocess.run(ignored, cwd=SOURCE, capture_output=True, text=True)
    assert listed.stdout == ""


def test_every_public_name_is_there_and_old_ones_lead_to_it():
    assert all(getattr(tpdm, name) is not None for name in dir(tpdm))
    with pytest.warns(FutureWarning, match=r"tpdm\.FixedTimes is now tpdm\.FixedSchedule"):
        assert tpdm.FixedTimes is tpdm.FixedSchedule
    with pytest.raises(AttributeError, match="it has AdaptiveOutput"):
        _ = tpdm.nothing


def test_importing_tpdm_loads_no_pipelines():
    code = "import sys, tpdm; print(sorted({'diffusers', 'transformers'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", FILES)
def test_a_module_says_what_it_provides(name):
    said = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8"))) or ""
    assert len(said.split()) > 2 or name.endswith("__main__.py"), f"{name}: {said!r}"
