"""The training loop that every part of tinyworld is built with: resumable, deterministic, with a progress bar."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tpdm.core.io import load_tensors, save_tensors, write_json

LossFn = Callable[[int], Tensor]


@dataclass(frozen=True)
class FitPlan:
    """How long and how fast one part is trained.

    Attributes:
        steps: optimizer steps in all.
        lr: peak learning rate; warm-up over the first 2 %, then a cosine to zero.
        weight_decay: decoupled, on matrices only.
        ema: decay of the averaged weights that are kept at the end; 0 keeps the last weights.
        muon: use Muon for the hidden matrices (AdamW for the rest), which needs fewer samples.
        save_every: steps between checkpoints.
    """

    steps: int
    lr: float
    weight_decay: float = 0.01
    ema: float = 0.0
    muon: bool = False
    save_every: int = 250


def learning_rate(plan: FitPlan, step: int) -> float:
    """Warm-up then cosine to zero, for step in [0, plan.steps)."""
    warm = max(1, plan.steps // 50)
    if step < warm:
        return plan.lr * (step + 1) / warm
    return plan.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, plan.steps - warm)))


def _optimizers(module: nn.Module, plan: FitPlan) -> list[torch.optim.Optimizer]:
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        is_hidden = p.ndim == 2 and "embed" not in name and "proj_out" not in name
        (hidden if plan.muon and is_hidden else rest).append(p)
    matrices = [p for p in rest if p.ndim >= 2]
    vectors = [p for p in rest if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=plan.lr, betas=(0.9, 0.98))]
    if hidden:
        optimizers.append(
            torch.optim.Muon(hidden, lr=plan.lr, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


def fit(name: str, module: nn.Module, loss_fn: LossFn, plan: FitPlan, folder: Path) -> None:
    """Trains ``module`` in place and leaves the final (averaged) weights in it.

    Interrupted anywhere, a second call goes on from the last checkpoint. The loss of a step must depend on the step
    number alone (data drawn from a generator seeded by it), so that nothing else has to be saved.

    Args:
        name: of the part; names its checkpoint and log.
        module: what is trained.
        loss_fn: step number -> scalar loss.
        plan: lengths and rates.
        folder: where ``{name}.ckpt.safetensors`` and ``{name}.log.jsonl`` go.
    """
    optimizers = _optimizers(module, plan)
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    start = _restore(folder / f"{name}.ckpt.safetensors", module, optimizers, average)
    bar = tqdm(range(start, plan.steps), desc=name, initial=start, total=plan.steps, dynamic_ncols=True)
    window: list[float] = []
    began = time.monotonic()
    for step in bar:
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = learning_rate(plan, step)
        loss = loss_fn(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; lower the learning rate")
        module.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if plan.ema:
            _update_average(average, module, min(plan.ema, (1 + step) / (10 + step)))
        window.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(window) / len(window)
            bar.set_postfix(loss=f"{mean:.4f}")
            _log(folder / f"{name}.log.jsonl", step + 1, mean, time.monotonic() - began)
            window.clear()
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            _save(folder / f"{name}.ckpt.safetensors", step + 1, module, optimizers, average)
    if plan.ema:
        module.load_state_dict(average)


@torch.no_grad()
def _update_average(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for key, value in module.state_dict().items():
        if value.is_floating_point():
            average[key].lerp_(value, 1 - decay)
        else:
            average[key].copy_(value)


def _log(path: Path, step: int, loss: float, seconds: float) -> None:
    with path.open("a") as f:
        f.write(json.dumps({"step": step, "loss": round(loss, 6), "seconds": round(seconds, 1)}) + "\n")


def _save(
    path: Path,
    step: int,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
) -> None:
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{k}": v for k, v in state.items()}
    save_tensors(path, tensors, {"step": str(step)})
    write_json(path.with_suffix(".json"), {"step": step})


def _restore(path: Path, module: nn.Module, optimizers: list[torch.optim.Optimizer], average: dict[str, Tensor]) -> int:
    if not path.exists():
        return 0
    tensors, metadata = load_tensors(path)
    module.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for key in average:
        average[key].copy_(tensors[f"average.{key}"])
    for i, optimizer in enumerate(optimizers):
        packed = optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, index, field = key.split(".", 3)
                state.setdefault(int(index), {})[field] = value
        packed["state"] = state
        optimizer.load_state_dict(packed)
    return int(metadata["step"])
