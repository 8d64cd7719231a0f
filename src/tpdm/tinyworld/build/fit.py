"""Training loop of all parts of tinyworld: resumable, deterministic, with a progress bar."""

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
    """Length and learning rate of the training of one part.

    Attributes:
        steps: Number of optimizer steps.
        lr: Peak learning rate. Warm-up over the first 2 %, then a cosine to zero.
        weight_decay: Decoupled weight decay of matrices.
        ema: Decay of the averaged weights that are used at the end. 0 uses the last weights.
        muon: Whether to use Muon for the hidden matrices (AdamW for the rest), which needs fewer samples.
        save_every: Number of steps between checkpoints.
    """

    steps: int
    lr: float
    weight_decay: float = 0.01
    ema: float = 0.0
    muon: bool = False
    save_every: int = 250


def learning_rate(plan: FitPlan, step: int) -> float:
    """Return the learning rate of a step in [0, plan.steps): warm-up, then a cosine to zero."""
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
    """Train a module in place, and leave the final (averaged) weights in it.

    After an interruption, a second call continues from the last checkpoint. The loss of a step must depend only on the
    step number (with data from a generator seeded by it), so that nothing else has to be saved.

    Args:
        name: Name of the part, used for its checkpoint and its log.
        module: Module to train.
        loss_fn: Function from step number to scalar loss.
        plan: Length and learning rate.
        folder: Folder of ``{name}.ckpt.safetensors`` and ``{name}.log.jsonl``.

    Raises:
        FloatingPointError: The loss is not finite.
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
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}. Lower the learning rate.")
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
