"""What a process of ``tests.support.processes`` has imported when it begins: ten seconds of every command."""

import accelerate  # noqa: F401
import matplotlib.figure  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import uvicorn  # noqa: F401
from diffusers import StableDiffusion3Pipeline  # noqa: F401
from transformers import CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401

import tpdm.cli.app
import tpdm.evaluation.evaluate
import tpdm.sampling.batching.pipeline
import tpdm.serving.http.app
import tpdm.training.train  # noqa: F401
