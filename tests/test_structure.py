"""The plan of the house, as data, and the check that the source keeps to it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tpdm"

# A room (module or folder of src/tpdm) imports rooms of its own level and of lower ones, lowest first.
# Besides, rooms never import each other in a circle when they are loaded.
LEVELS = (
    {"types", "files", "faults", "portion", "devices", "streams", "versions"},
    {"core"},
    {
        "policy",
        "policy_shape",
        "policy_features",
        "policy_layers",
        "schedules",
        "artefact",
        "artefact_config",
        "convert",
        "convert_source",
        "dial",
        "error_control",
    }
    | {"rewards", "prompts", "prompt_files", "prompt_sets", "prompt_columns", "over_long", "vocabulary", "config"}
    | {"recipe", "recipe_data", "recipe_model", "recipe_numbers", "recipe_idle"},
    {"stepper", "stepper_checks"},
    {"pipelines"},
    {"rollout", "rollout_continuous", "rollout_images", "rollout_ways"},
    {"train", "evals", "serve", "sample"},
    {"publish"},
    {"demo", "cli", "doctor", "__main__"},
)
# The embedded model stands beside the levels: what it imports, and who imports it.
TINYWORLD_IMPORTS = {"types", "files", "core", "prompts", "pipelines", "tinyworld"}
TINYWORLD_USERS = {"cli", "evals", "demo", "doctor", "tinyworld"}
TINYWORLD_LAZY_USERS = (
    "pipelines.load",
    "rewards",
    "prompts",
    "artefact",
)  # inside a function only: they choose by name
# Heavy or optional packages, and the only rooms that may know them.
PACKAGES = {
    "diffusers": {"pipelines", "tinyworld"},
    "transformers": {"pipelines", "tinyworld", "rewards", "evals"},
    "accelerate": {"train"},
    "matplotlib": {"evals"},
    "torchmetrics": {"evals"},
    "datasets": {"prompt_sets"},
    "pyarrow": {"prompt_sets"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "prometheus_client": {"serve"},
    "ray": {"serve"},
    "rich": {"train"},
    "typer": {"cli"},
}
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FILE = 500, 100, 150

LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One imported name: ``tpdm.policies.beta`` or ``diffusers.AutoencoderKL``, and when it happens."""

    name: str
    lazy: bool  # inside a function
    types_only: bool  # under `if TYPE_CHECKING`

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def room(self) -> str:
        """Room of an import from tpdm; empty for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""


def imports(node: ast.AST, module: str, lazy: bool = False, types_only: bool = False) -> Iterator[Import]:
    """Every import below ``node``, names in full; ``module`` is the dotted name of the file's package."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy, types_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - child.level + 1] if child.level else []
            base = ".".join([*parents, *([child.module] if child.module else [])])
            yield from (Import(f"{base}.{alias.name}", lazy, types_only) for alias in child.names)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            guarded = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from imports(child, module, lazy or inside, types_only or guarded)


def violations(module: str, source: str) -> list[str]:
    """Rules that one file breaks.

    Args:
        module: dotted name within tpdm, ``pipelines.load``; "" for ``tpdm/__init__.py``.
        source: its text.
    """
    room = module.split(".")[0]
    package = ".".join(["tpdm", *module.split(".")[:-1]])
    found = [one for one in imports(ast.parse(source), package) if not _allowed(module, room, one)]
    return [f"tpdm.{module or '__init__'} may not import {one.name}" for one in found]


def _allowed(module: str, room: str, one: Import) -> bool:
    if one.package in PACKAGES:
        return room in PACKAGES[one.package]
    if one.package != "tpdm":
        return True
    if room == "":  # the public names
        return one.room != "tinyworld"
    if one.room == "tinyworld":
        lazy_user = any(f"{module}.".startswith(f"{user}.") for user in TINYWORLD_LAZY_USERS)
        return room in TINYWORLD_USERS or (lazy_user and one.lazy)
    if room == "tinyworld":
        return one.room in TINYWORLD_IMPORTS
    # An unknown room is `import tpdm` or a public name: inside the house one imports the room itself.
    return one.room in LEVEL_OF and room in LEVEL_OF and LEVEL_OF[one.room] <= LEVEL_OF[room]


FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("__init__").strip("/").replace("/", ".")


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    # A package's own __init__ counts as a module inside it, which is what relative imports need.
    module = module_of(name) + (".__init__" if name.count("/") and name.endswith("__init__.py") else "")
    assert violations(module, FILES[name].read_text(encoding="utf-8")) == []


def test_every_room_has_a_level():
    rooms = {module_of(name).split(".")[0] for name in FILES} - {""}
    assert rooms - set(LEVEL_OF) == {"tinyworld"}


def test_rooms_do_not_load_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for name, path in FILES.items():
        room = module_of(name).split(".")[0]
        found = imports(ast.parse(path.read_text(encoding="utf-8")), "tpdm")
        now = {one.room for one in found if one.package == "tpdm" and not one.lazy and not one.types_only}
        graph.setdefault(room, set()).update(now - {room, ""})
    TopologicalSorter(graph).prepare()  # CycleError names the circle


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("core.beta", "import torch\nfrom tpdm.core.types import ConfigError", True),
        ("core.beta", "from tpdm.policies.tpm import TimePredictor", False),
        ("core.beta", "def f():\n    import tpdm.core.stepper", False),
        ("core.beta", "from diffusers import AutoencoderKL", False),
        ("core.beta", "from ..stepper import Stepper", False),
        ("core.beta", "from . import paths\nfrom .paths import uniform\nfrom .. import types", True),
        ("stepper", "from tpdm.policies import fixed as schedules", True),
        ("stepper", "from tpdm import attach", False),
        ("stepper", "import tpdm", False),
        ("rewards.clip", "import transformers", True),
        ("rewards.clip", "import accelerate", False),
        ("train.loop", "import accelerate\nfrom tpdm import rollout", True),
        ("train.loop", "import tpdm.cli", False),
        ("pipelines.load", "def f():\n    from tpdm.tinyworld.pipeline import load", True),
        ("pipelines.load", "from tpdm.tinyworld.pipeline import load", False),
        ("pipelines.loader", "def f():\n    import tpdm.tinyworld", False),
        ("tinyworld.build", "from tpdm.pipelines.loading.load import load_pipeline", True),
        ("tinyworld.build", "from tpdm.config.recipe import Recipe", False),
        ("newroom", "import tpdm.core.types", False),
        ("", "from tpdm.pipelines.attach import attach", True),
        ("", "import tpdm.tinyworld", False),
    ],
)
def test_the_check_itself(module, source, allowed):
    assert (violations(module, source) == []) is allowed


@pytest.mark.parametrize("name", FILES)
def test_no_file_and_no_function_is_long(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno + 1 > LONGEST_FUNCTION]
    assert long == []


def test_half_of_the_files_are_short():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES.values()]
    # A line of docstring in an __init__ is no file: counting it would only flatter.
    assert median(length for length in lengths if length > 5) <= MEDIAN_FILE


def test_importing_tpdm_loads_no_pipelines():
    code = "import sys, tpdm; print(sorted({'diffusers', 'transformers'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
