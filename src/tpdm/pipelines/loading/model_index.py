"""What a pipeline is made of, by its model_index.json alone: classes, and whether the installed libraries have them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tpdm.core.errors import BackboneError
from tpdm.core.file_errors import first_fault, first_line

_FILE = "model_index.json"


@dataclass(frozen=True)
class PipelineIndex:
    """A pipeline before anything of it is loaded.

    Attributes:
        place: folder or Hub name.
        class_name: of the pipeline.
        parts: library and class of each part, by its name; without those that were saved as None.
        empty: names of those that were.
        written_by: version of diffusers that wrote it.
        content: all of the file, which has settings of the pipeline too.
    """

    place: str | Path
    class_name: str
    parts: Mapping[str, tuple[str, str]]
    empty: tuple[str, ...]
    written_by: str
    content: Mapping[str, Any]

    def pipeline_class(self) -> Any:
        """The class of the pipeline.

        Raises:
            BackboneError: the installed diffusers does not have it.
        """
        import diffusers

        return self._found(diffusers, self.class_name, "of the pipeline")

    def part_class(self, name: str) -> Any:
        """The class of a part.

        Raises:
            BackboneError: the installed libraries do not have it, or it is code that comes with the model.
        """
        import diffusers
        import transformers

        library, class_name = self.parts[name]
        # Some parts are defined beside their pipeline: ["stable_diffusion", "StableDiffusionSafetyChecker"].
        beside = getattr(diffusers.pipelines, library, None)
        module = {"diffusers": diffusers, "transformers": transformers}.get(library, beside)
        if module is None:
            raise BackboneError(
                f"got the part {name} of {library!r} in {self._file}, expected diffusers or transformers: code that "
                "comes with a model is never run, choose another pipeline."
            )
        return self._found(module, class_name, f"of {name}")

    def default_steps(self) -> int:
        """Steps of the pipeline's call where the caller says nothing."""
        call = inspect.signature(self.pipeline_class().__call__)
        return int(call.parameters["num_inference_steps"].default)

    @property
    def _file(self) -> str:
        return f"{self.place}/{_FILE}"

    def _found(self, module: Any, name: str, whose: str) -> Any:
        found = getattr(module, name, None)
        if isinstance(found, type):
            return found
        library = module.__name__.split(".")[0]
        raise BackboneError(
            f"got the class {name} {whose} in {self._file}, written by diffusers {self.written_by}, expected one that "
            f"the installed {library} {version(library)} has: pip install -U {library}, or choose another pipeline."
        )


def read_index(place: str | Path, called: str | Path | None = None) -> PipelineIndex:
    """The index of a pipeline folder or of a Hub name, of which one small file is fetched.

    Args:
        place: folder or Hub name.
        called: what the user calls it; ``place`` if not given.

    Raises:
        BackboneError: there is no such pipeline, or its index cannot be read.
    """
    import diffusers

    if not Path(place).is_dir() and not _is_hub_name(place):
        raise BackboneError(
            f"got {str(place)!r}, which is no folder, expected 'tinyworld', a pipeline folder or a Hub name "
            "'owner/model': check the path."
        )
    file = Path(place) / _FILE
    said = first_fault([file]) if file.is_file() else None
    content: Any = {}
    try:
        if said is None:
            content = diffusers.DiffusionPipeline.load_config(place)
    except (OSError, ValueError) as error:
        said = f"{str(called or place)!r}, whose index diffusers cannot load ({first_line(error)})"
    if said is None and not isinstance(content.get("_class_name"), str):
        said = f"{place}/{_FILE} with the class {content.get('_class_name')!r} of the pipeline"
    if said is not None:
        raise BackboneError(
            f"got {said}, expected 'tinyworld', a folder with a whole pipeline of diffusers, or a Hub name "
            "'owner/model': check the path, or fetch it again."
        )
    parts = {name: part for name, part in content.items() if _is_part(part)}
    return PipelineIndex(
        place=place,
        class_name=content["_class_name"],
        parts={name: (str(part[0]), str(part[1])) for name, part in parts.items() if part[0] is not None},
        empty=tuple(name for name, part in parts.items() if part[0] is None),
        written_by=str(content.get("_diffusers_version", "of an unknown version")),
        content=content,
    )


def _is_hub_name(name: str | Path) -> bool:
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _is_part(value: Any) -> bool:
    """Whether an entry of an index says library and class of a part; the others are settings of the pipeline."""
    return isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value)
