"""Base checkpoints, a single file or a diffusers folder, read and rewritten one tensor at a time."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.pocket import MODEL_FOLDER
from engine.tools.files import TensorFile, open_tensors
from engine.tools.names import Target, checkpoint_targets, folder_target
from engine.tools.progress import Progress, no_progress
from engine.tools.writing import write_stream
from knowledge.answers import PlainError
from knowledge.config import POCKET_MODEL

COMPONENT_FOLDERS = ("unet", "text_encoder", "text_encoder_2")
VARIANT = re.compile(r"\.(fp16|bf16|non_ema|ema)\.safetensors$")


@dataclass(frozen=True)
class Place:
    """One tensor of a checkpoint, and which layers' weights (or biases) it holds."""

    file: str
    name: str
    targets: tuple[Target, ...]
    bias: bool
    dtype: torch.dtype
    shape: tuple[int, ...]


class Checkpoint:
    """A base model on disk, or the pocket model by its name. Raises PlainError when there is none at this path."""

    def __init__(self, path: Path | str) -> None:
        self.path = MODEL_FOLDER if str(path) == POCKET_MODEL else Path(path)
        self.is_folder = os.path.isdir(self.path)  # noqa: PTH112  (false for a name that cannot be)
        if self.is_folder:
            self.files = {str(f.relative_to(self.path)): f for f in _weight_files(self.path)}
        else:
            self.files = {"": self.path}
        self.opened = {key: open_tensors(file) for key, file in self.files.items()}
        self.where = {
            target.module: (place, target) for place in self.places() if not place.bias for target in place.targets
        }
        if not self.where:
            raise PlainError(
                f"{self.path} is not a Stable Diffusion checkpoint: no layer of a UNet or text encoder is in it."
            )

    def places(self) -> Iterator[Place]:
        """Every tensor of every file, in the order of the files."""
        for key, tensors in self.opened.items():
            for name in tensors:
                dtype, shape = tensors.layout(name)
                targets: tuple[Target, ...] = ()  # a lone number or an empty tensor is no weight of a layer
                if math.prod(shape) > 0 and shape:
                    own = folder_target(Path(key).parts[0], name) if self.is_folder else None
                    targets = (own,) if own else tuple(checkpoint_targets(name, shape[0]))
                yield Place(key, name, targets, name.endswith("bias"), dtype, shape)

    def read(self, place: Place) -> Tensor:
        return self.opened[place.file][place.name]

    def weight(self, module: str) -> Tensor | None:
        """The weight of a layer by canonical name; None when this checkpoint has no such layer."""
        if module not in self.where:
            return None
        place, target = self.where[module]
        tensor = self.read(place)
        return tensor[target.start : target.end]

    @property
    def family(self) -> str:
        """sd15, sd2 or sdxl by the width of the text that the UNet reads; sd15 for tiny models of another width."""
        widths = [place.shape[-1] for module, (place, _) in self.where.items() if module.endswith("attn2.to_k")]
        if any(module.startswith("text_encoder_2.") for module in self.where):
            return "sdxl"
        return {1024: "sd2", 2048: "sdxl"}.get(widths[0] if widths else 0, "sd15")

    def rewrite(
        self, output: Path, changed: Callable[[Place, Tensor], Tensor], progress: Progress = no_progress
    ) -> None:
        """Write the checkpoint to `output` with every tensor passed through `changed`; a folder becomes a folder."""
        total = sum(len(tensors) for tensors in self.opened.values())
        if not self.is_folder:
            self._rewrite_file("", output, changed, progress, 0, total)
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
        try:
            done = 0
            skipped = {str(file) for file in self.files.values()}
            shutil.copytree(
                self.path,
                temporary,
                dirs_exist_ok=True,
                ignore=lambda folder, names: [
                    n for n in names if str(Path(folder) / n) in skipped or _other_weights(Path(folder), n)
                ],
            )
            for key in self.files:
                self._rewrite_file(key, temporary / VARIANT.sub(".safetensors", key), changed, progress, done, total)
                done += len(self.opened[key])
            if output.exists():
                shutil.rmtree(output)
            temporary.chmod(0o755)
            temporary.replace(output)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _rewrite_file(
        self,
        key: str,
        output: Path,
        changed: Callable[[Place, Tensor], Tensor],
        progress: Progress,
        done: int,
        total: int,
    ) -> None:
        source = self.opened[key]
        places = [place for place in self.places() if place.file == key]
        layout = {place.name: (place.dtype, place.shape) for place in places}
        metadata = dict(source.metadata)
        stale = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
        metadata = {name: value for name, value in metadata.items() if name not in stale}
        if isinstance(source, TensorFile):
            order = sorted(layout, key=lambda name: source.header.entries[name].start)
            layout = {name: layout[name] for name in order}
            places.sort(key=lambda place: source.header.entries[place.name].start)
        stream = ((place.name, changed(place, self.read(place))) for place in places)
        write_stream(output, layout, stream, metadata, progress=lambda n, _: progress(done + n, total))


def _weight_files(folder: Path) -> list[Path]:
    """The weights of the parts that a LoRA can change: one file, or all shards, of each component."""
    found = []
    for component in COMPONENT_FOLDERS:
        if not (folder / component).is_dir():
            continue
        files = sorted((folder / component).glob("*.safetensors"))
        plain = [file for file in files if not VARIANT.search(file.name)]
        chosen = plain or [file for file in files if ".fp16." in file.name] or files[:1]
        if not chosen:
            raise PlainError(f"{folder / component} has no .safetensors weights; only those are read and written here.")
        found += chosen
    if not found:
        raise PlainError(f"{folder} is not a diffusers model folder: it has no unet folder with weights.")
    return found


def _other_weights(folder: Path, name: str) -> bool:
    """Weights of a changed component that would contradict the new ones: other precisions, pickles."""
    return folder.name in COMPONENT_FOLDERS and name.endswith((".bin", ".msgpack", ".safetensors", ".onnx"))
