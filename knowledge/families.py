"""What is known of each family of base models before any model of it is there.

A family is a folder of data named for it: family.toml, and the usual configs of its parts laid out as in a diffusers
model. `engine.models` says what a new one takes in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from knowledge.parsed import parsed

DATA = Path(__file__).parent / "data" / "architectures"
FOLDERS = [DATA]
"""Where the folders of families stand."""


@dataclass(frozen=True, kw_only=True)
class ListedLayer:
    """Layers of a part as family.toml lists them, where knowledge.architectures does not work them out of the config.

    Sizes are formulas over the part's config and the part's `numbers`. There is a layer for every number from `first`
    on, `repeat` of them, which takes the place of {} in `path`.
    """

    path: str
    inputs: str
    outputs: str
    kind: str = "linear"
    kernel: str = "1"
    bias: bool = True
    group: str = ""
    first: str = "0"
    repeat: str = "1"


@dataclass(frozen=True)
class ListedPart:
    """All layers of one part. `numbers`: formulas over its config, each of which may use those before it."""

    layers: tuple[ListedLayer, ...]
    numbers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FamilyFacts:
    """One family.

    `prefixes`: for each part that a network can change, how its layers' names begin in network files; the part that
    predicts is called "unet" whatever it is, and stands in the folder `predictor`. `pipelines`: a pattern of the
    pipelines in the model_index.json of its folders; empty for a family that has no models but ours. `applications`:
    the programs that draw with its models and whose reading of files for it engine.tools.applications knows. `side`: of
    the pictures that it learned on, in pixels. `marks`: tensors that single files of it alone hold.

    `original_names`: network files call the layers of its UNet as the published checkpoint does. `blocks`: of its UNet,
    as sd-scripts numbers them; 0 where they have no such numbers. `smallest_boft_rank`: BOFT cuts each layer's outputs
    into a power of two of even blocks, 320 into 32 of ten. `start_seconds`: from the command to the first step, with
    the files in memory. `lacking`: parameters that it cannot honour, and why, in words that follow its title.

    `text`: formulas for the `tokens`, the `width` and the `pooled` numbers of what the text encoders make of a caption,
    over `tokens` that they read and the configs (unet.joint_attention_dim), where these do not just stand side by side.

    `base_model_version`, `architecture` (`v_architecture` where those that predict v have a name of their own),
    `implementation` and `tags`: its names in the metadata of network files, and on the Hugging Face hub. `versions`:
    how its base_model_version begins in files of any program.
    """

    name: str
    folder: Path
    title: str
    prefixes: Mapping[str, str]
    side: int
    start_seconds: float
    base_model_version: str
    architecture: str
    v_architecture: str = ""
    implementation: str = "diffusers"
    tags: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    predictor: str = "unet"
    pipelines: str = ""
    marks: tuple[str, ...] = ()
    applications: tuple[str, ...] = ()
    original_names: bool = False
    blocks: int = 0
    smallest_boft_rank: int = 10
    lacking: Mapping[str, str] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    listed: Mapping[str, ListedPart] = field(default_factory=dict)

    @property
    def text_encoders(self) -> tuple[str, ...]:
        return tuple(part for part in self.prefixes if part != "unet")

    @property
    def trace(self) -> Path:
        """What a step of training allocates and computes, as `engine.tools.trace_memory` finds it."""
        return self.folder.parent.parent / "memory" / f"{self.name}.json"

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each part with weights in a diffusers model."""
        return {"unet": self.predictor, "vae": "vae", **{name: name for name in self.text_encoders}}


def family_names() -> tuple[str, ...]:
    """Every family, in the order of the alphabet."""
    return _names_in(tuple(FOLDERS))


@cache  # asked for each layer of a file
def _names_in(folders: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(sorted(path.parent.name for folder in folders for path in folder.glob("*/family.toml")))


def trained_here() -> str:
    """The families that models can be had of, in words."""
    *others, last = (facts.title for facts in families())
    return f"{', '.join(others)} and {last}"


def families() -> Iterator[FamilyFacts]:
    """Every family that models can be had of: all but the pocket model's."""
    return (facts for facts in map(family_facts, family_names()) if facts.pipelines)


def family_of_version(version: str) -> str | None:
    """The family that metadata means by this ss_base_model_version; None where it is none of ours."""
    return next((facts.name for facts in families() if version.startswith(facts.versions)), None)


@cache
def family_facts(name: str) -> FamilyFacts:
    """The family of this name. Raises KeyError where there is none."""
    folder = next((folder / name for folder in FOLDERS if (folder / name / "family.toml").is_file()), None)
    if folder is None:
        raise KeyError(name)
    table: dict[str, Any] = dict(parsed(folder / "family.toml"))
    listed = {part: _listed(rows) for part, rows in table.pop("listed", {}).items()}
    table |= {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return FamilyFacts(name=name, folder=folder, listed=listed, **table)


def _listed(part: Mapping[str, Any]) -> ListedPart:
    return ListedPart(tuple(ListedLayer(**row) for row in part["layers"]), part.get("numbers", {}))
