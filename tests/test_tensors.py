"""No tensor depends on what somebody set as torch's default dtype or device, and float64 stays on the CPU.

A process has one default dtype, and a library, a notebook or a caller may set it. Apple's devices have no float64.
"""

import ast
from collections.abc import Callable, Iterator

import pytest

from tests.test_structure import FILES

FACTORIES = {
    *("zeros", "ones", "empty", "full", "tensor", "as_tensor", "scalar_tensor", "asarray", "eye", "normal"),
    *("arange", "range", "linspace", "logspace", "rand", "randn", "randint", "randperm", "complex", "empty_strided"),
    *("tril_indices", "triu_indices", "cartesian_prod", "Tensor", "FloatTensor", "DoubleTensor", "LongTensor"),
}
LAYERS = {"Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm", "RMSNorm", "Embedding", "Parameter"}
# torch.from_numpy and torch.frombuffer take no device: they share memory of the host, and its dtype.
FRESH = "FRESH"  # policy_layers: dtype and device of the TPM's weights, under one name
EXEMPT = {
    "rewards/aesthetic.py": "made on the meta device by rewards.checkpoints.fill, which puts fp32 tensors into it",
}
FLOAT64 = {
    "evaluation/distribution.py": "a metric of torchmetrics, whose features lie on the CPU",
}


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def backbone_defaults(source: str) -> Iterator[str]:
    """Calls that create a tensor without dtype or device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            hidden = {alias.name for alias in node.names} & (FACTORIES - {"Tensor"})
            yield from (f"line {node.lineno}: from torch import {name}" for name in hidden)
        if not isinstance(node, ast.Call):
            continue
        module, _, name = dotted(node.func).rpartition(".")
        makes = (module == "torch" and name in FACTORIES) or (module in ("nn", "torch.nn") and name in LAYERS)
        said = {keyword.arg or ast.unparse(keyword.value) for keyword in node.keywords}
        if (makes or (module, name) == ("", "Tensor")) and not ({"dtype", "device"} <= said or FRESH in said):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def doubles(source: str) -> Iterator[str]:
    """float64 that is not on the CPU in plain sight: torch.float64 beside device="cpu", or .cpu().double()."""
    tree = ast.parse(source)
    on_cpu = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg == "device" and ast.unparse(k.value) == "'cpu'" for k in node.keywords)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if dotted(node) in ("torch.float64", "torch.double", "torch.complex128") and id(node) not in on_cpu:
            yield f"line {node.lineno}: {dotted(node)}"
        wide = isinstance(node, ast.Attribute) and node.attr == "double" and dotted(node) != "torch.double"
        if wide and not ast.unparse(node.value).endswith(".cpu()"):
            yield f"line {node.lineno}: {ast.unparse(node)[:80]}"


def broken(rule: Callable[[str], Iterator[str]]) -> dict[str, list[str]]:
    """Findings of a rule by file, without files that have none."""
    found = {name: list(rule(path.read_text(encoding="utf-8"))) for name, path in FILES.items()}
    return {name: lines for name, lines in found.items() if lines}


def test_every_tensor_is_created_with_dtype_and_device():
    found = broken(backbone_defaults)
    assert set(found) == set(EXEMPT), found


def test_float64_is_on_the_cpu():
    found = broken(doubles)
    assert set(found) == set(FLOAT64), found


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("torch.zeros(3)", False),
        ("torch.zeros(3, dtype=torch.float32)", False),
        ("torch.zeros(3, device=x.device)", False),
        ("torch.zeros(3, dtype=torch.float32, device=x.device)", True),
        ("torch.zeros(3, **FRESH)", True),
        ("torch.zeros(3, **options)", False),
        ("nn.Linear(2, 3)", False),
        ("nn.Linear(2, 3, **FRESH)", True),
        ("Tensor([1.0])", False),
        ("torch.zeros_like(x) + x.new_zeros(3)", True),
        ("from torch import zeros", False),
        ("from torch import Tensor", True),
    ],
)
def test_the_check_of_factories(source, allowed):
    assert (list(backbone_defaults(source)) == []) is allowed


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("x.double()", False),
        ("x.cpu().double()", True),
        ("x.to(torch.float64)", False),
        ("torch.arange(3, dtype=torch.float64, device='cpu')", True),
        ("torch.arange(3, dtype=torch.float64, device=x.device)", False),
        ("np.asarray(x, dtype=np.float64)", True),
    ],
)
def test_the_check_of_float64(source, allowed):
    assert (list(doubles(source)) == []) is allowed
