"""What the TPM costs compared with the denoisers it is made for, at their published shapes, counted in operations.

The networks are built on torch's meta device, so that only shapes exist. torch's counter adds up multiplications and
additions of matrix products, attention and convolutions, without element-wise work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.page import table
from benchmarks.shapes import flux, sd3
from tpdm.core.types import Observation
from tpdm.policies.tpm import TimePredictionModule
from tpdm.policies.tpm_config import TPMConfig

RELEASED_BYTES = 25_165_824  # features of one image and step in the release: 3072 x 64 x 64 in fp16


@dataclass(frozen=True)
class Case:
    """One denoiser at one size: ``rows`` per image and step, tokens of image and text, widths of its features."""

    name: str
    make: Callable[[], Any]
    call: Callable[[int, int, int], dict[str, Any]]
    rows: int
    side: int  # of the token grid
    text: int
    width: int
    temb: int


def sd3_call(rows: int, side: int, text: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(rows, 16, 2 * side, 2 * side),
        "encoder_hidden_states": torch.empty(rows, text, 4096),
        "pooled_projections": torch.empty(rows, 2048),
        "timestep": torch.empty(rows),
    }


def flux_call(rows: int, side: int, text: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(rows, side * side, 64),
        "encoder_hidden_states": torch.empty(rows, text, 4096),
        "pooled_projections": torch.empty(rows, 768),
        "timestep": torch.empty(rows),
        "img_ids": torch.empty(side * side, 3),
        "txt_ids": torch.empty(text, 3),
        "guidance": torch.empty(rows),
    }


# Shapes of the published configurations; 1024 pixels are 64 x 64 tokens, 512 are 32 x 32. SD3 is guided: two rows.
CASES = [
    Case("SD3 Medium, 1024 px", partial(sd3, 24, 24), sd3_call, 2, 64, 333, 1536, 1536),
    Case("SD3 Medium, 512 px", partial(sd3, 24, 24), sd3_call, 2, 32, 333, 1536, 1536),
    Case("SD3.5 Large, 1024 px", partial(sd3, 38, 38, qk_norm="rms_norm"), sd3_call, 2, 64, 333, 2432, 2432),
    Case("FLUX.1-dev, 1024 px", flux, flux_call, 1, 64, 512, 3072, 3072),
]
TINY = [
    Case("SD3, tiny", partial(sd3, 1, 2), sd3_call, 2, 4, 3, 128, 128),
    Case("FLUX.1, tiny", partial(flux, 1, 1, 2), flux_call, 1, 4, 3, 256, 256),
]


def operations(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def tpm_operations(shape: TPMConfig, side: int) -> int:
    policy = TimePredictionModule(shape)
    grid = side if shape.layout == "release" else shape.grid
    one = torch.ones(1)
    seen = Observation(
        map_BCHW=torch.empty(1, 2 * shape.feature_channels, grid, grid),
        temb_BE=torch.empty(1, shape.temb_channels),
        t_B=one,
        index_B=one.long(),
        row_B=one.long(),
    )
    return operations(lambda: policy(seen))


def count(case: Case) -> dict[str, Any]:
    with torch.device("meta"):
        denoiser = case.make()
        step = operations(lambda: denoiser(**case.call(case.rows, case.side, case.text)))
    pooled = TPMConfig(case.width, case.temb)
    folded = TPMConfig(case.width, case.temb, layout="release", token_grid=(case.side, case.side))
    replay = 2 * (2 * case.width * pooled.grid**2 + case.temb)
    return {
        "name": case.name,
        "denoiser_parameters": sum(p.numel() for p in denoiser.parameters()),
        "tpm_parameters": sum(p.numel() for p in TimePredictionModule(pooled).parameters()),
        "step_operations": step,
        "share_pooled": tpm_operations(pooled, case.side) / step,
        "share_folded": tpm_operations(folded, case.side) / step,
        "replay_bytes": replay,
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tiny", action="store_true", help="shapes of a few units, printed alone")


def results(chosen: argparse.Namespace) -> str | None:
    return None if chosen.tiny else "docs/results/real-size.json"


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    rows = [count(case) for case in (TINY if chosen.tiny else CASES)]
    return {"operations": rows, "versions": {"torch": torch.__version__}}


def part(facts: dict[str, Any]) -> str:
    head = "denoiser | parameters | operations of a step | TPM | its share of a step | release layout | replay, bytes"
    rows = facts["operations"]
    lines = [
        [
            r["name"],
            f"{r['denoiser_parameters'] / 1e9:.2f} B",
            f"{r['step_operations'] / 1e12:.1f} T",
            f"{r['tpm_parameters'] / 1e6:.1f} M",
            f"{r['share_pooled']:.4%}",
            f"{r['share_folded']:.3%}",
            f"{r['replay_bytes']:,}",
        ]
        for r in rows
    ]
    share = RELEASED_BYTES / rows[0]["replay_bytes"]
    note = f"The release keeps {RELEASED_BYTES:,} bytes for {rows[0]['name']}: {share:.0f} times as many."
    return f"{table(head, lines, narrow=True)}\n\n{note}"
