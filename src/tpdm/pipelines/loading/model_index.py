"""``PipelineIndex``: the classes of a pipeline, read from its model_index.json."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tpdm.core.errors import BackboneError
from tpdm.core.file_errors import first_damage, first_line

_FILE = "model_index.json"


@dataclass(frozen=True)
class PipelineIndex:
    """Index of a pipeline that is not loaded yet.

    Attributes:
        place: Folder or Hub name.
        class_name: Name of the pipeline's class.
        parts: (library, class) of each part by its name, without parts that were saved as None.
        empty: Names of parts that were saved as None.
        written_by: Version of diffusers that wrote the file.
        content: Whole content of the file, including settings of the pipeline.
    """

    place: str | Path
    class_name: str
    parts: Mapping[str, tuple[str, str]]
    empty: tuple[str, ...]
    written_by: str
    content: Mapping[str, Any]

    def pipeline_class(self) -> Any:
        """Returns the class of the pipeline.

        Raises:
            BackboneError: The installed diffusers does not have it.
        """
        import diffusers

        return self._find(diffusers, self.class_name, "of the pipeline")

    def part_class(self, name: str) -> Any:
        """Returns the class of a part.

        Raises:
            BackboneError: The installed libraries do not have it, or it is code that comes with the model.
        """
        import diffusers
        import transformers

        library, class_name = self.parts[name]
        # Some parts are defined next to their pipeline: ["stable_diffusion", "StableDiffusionSafetyChecker"].
        pipeline_module = getattr(diffusers.pipelines, library, None)
        module = {"diffusers": diffusers, "transformers": transformers}.get(library, pipeline_module)
        if module is None:
            raise BackboneError(
                f"{name} is of library {library!r} in {self._file}. It must be of diffusers or transformers, because "
                "code that comes with a model is never run. Choose another pipeline."
            )
        return self._find(module, class_name, f"of {name}")

    def default_steps(self) -> int:
        """Returns the default number of steps of the pipeline's call."""
        call = inspect.signature(self.pipeline_class().__call__)
        return int(call.parameters["num_inference_steps"].default)

    @property
    def _file(self) -> str:
        return f"{self.place}/{_FILE}"

    def _find(self, module: Any, name: str, owner: str) -> Any:
        cls = getattr(module, name, None)
        if isinstance(cls, type):
            return cls
        library = module.__name__.split(".")[0]
        raise BackboneError(
            f"{name} is the class {owner} in {self._file}, written by diffusers {self.written_by}. The installed "
            f"{library} {version(library)} does not have it. Run pip install -U {library}, or choose another pipeline."
        )


def read_index(place: str | Path, name: str | Path | None = None) -> PipelineIndex:
    """Reads the index of a pipeline folder or of a Hub repository. One small file is downloaded.

    Args:
        place: Folder or Hub name.
        name: Name of the pipeline for messages. None uses ``place``.

    Raises:
        BackboneError: The pipeline does not exist, or its index cannot be read.
    """
    import diffusers

    if not Path(place).is_dir() and not _is_hub_name(place):
        raise BackboneError(
            f"{str(place)!r} is not a folder. A pipeline is 'tinyworld', a folder or a Hub name 'owner/model'. Check "
            "the path."
        )
    file = Path(place) / _FILE
    fault = first_damage([file]) if file.is_file() else None
    content: Any = {}
    try:
        if fault is None:
            content = diffusers.DiffusionPipeline.load_config(place)
    except (OSError, ValueError) as error:
        fault = f"{str(name or place)!r}, whose index diffusers cannot load ({first_line(error)})"
    if fault is None and not isinstance(content.get("_class_name"), str):
        fault = f"{place}/{_FILE} with the pipeline class {content.get('_class_name')!r}"
    if fault is not None:
        raise BackboneError(
            f"Cannot use {fault}. A pipeline is 'tinyworld', a folder with a complete diffusers pipeline, or a Hub "
            "name 'owner/model'. Check the path, or fetch the pipeline again."
        )
    parts = {key: part for key, part in content.items() if _is_part(part)}
    return PipelineIndex(
        place=place,
        class_name=content["_class_name"],
        parts={key: (str(part[0]), str(part[1])) for key, part in parts.items() if part[0] is not None},
        empty=tuple(key for key, part in parts.items() if part[0] is None),
        written_by=str(content.get("_diffusers_version", "of an unknown version")),
        content=content,
    )


def _is_hub_name(name: str | Path) -> bool:
    return isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def _is_part(value: Any) -> bool:
    """Whether an entry of an index is (library, class) of a part. Other entries are settings of the pipeline."""
    return isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value)
