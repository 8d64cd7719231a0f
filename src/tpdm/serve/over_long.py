"""What a client is told of a text that the pipeline does not read to its end."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tpdm.over_long import count_over_long
from tpdm.pipelines.reads import readers
from tpdm.serve.requests import ImageRequest


class OverLongTexts:
    """Counts tokens with tokenizers of its own: those of transformers cannot be asked by two threads at once.

    Args:
        pipe: whose text encoders read.
        arguments: of its call.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self._readers = [replace(one, tokenizer=copy.deepcopy(one.tokenizer)) for one in readers(pipe, arguments)]
        self._mutex = threading.Lock()

    def warnings(self, request: ImageRequest) -> tuple[str, ...]:
        """One sentence for each text and each encoder that does not read all of it; none of them quotes the text."""
        found = []
        for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
            for reader in self._readers:
                with self._mutex:
                    longer = count_over_long(reader.tokenizer, reader.tokens, [text])
                if longer:
                    found.append(f"{field}: {reader.name} reads {reader.tokens} tokens and does not see the rest")
        return tuple(found)
