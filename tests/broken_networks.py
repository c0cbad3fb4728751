"""python tests/broken_networks.py [--cases N] [--seed N]: broken network files through every command of `tools`.

Each case is a file of some algorithm with one to three things wrong with it, given to a command as each of its files.
Whatever the file: no traceback, no code from it executed, one sentence and an exit code above 0 or else a result that
reads; nothing half-written is left, and the file itself stays as it was. Exit code 1 with the cases that differ.
"""

from __future__ import annotations

# ruff: noqa: E402  (the folder of the tests must be found first)
import argparse
import hashlib
import io
import json
import os
import pickle
import random
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import click
from click.testing import CliRunner

from engine.tools.files import TensorFile
from knowledge.answers import PlainError
from wizard.tools import tools

OUT, IN, RANK = 16, 8, 2
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_mid_block_resnets_0_conv1"
PLACES = {
    LINEAR: ("model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight", ()),
    CONV: ("model.diffusion_model.middle_block.0.in_layers.2.weight", (3, 3)),
}
"""The layers of every file, their weight in the base model, and its kernel."""

Shapes = dict[str, tuple[int, ...]]


def _ones(kernel: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 for _ in kernel)


def _taps(kernel: tuple[int, ...]) -> int:
    return 9 if kernel else 1


LORA = ("lora_up.weight", "lora_down.weight")
ALGORITHMS: dict[str, Callable[[tuple[int, ...]], Shapes]] = {
    "lora": lambda k: {LORA[0]: (OUT, RANK, *_ones(k)), LORA[1]: (RANK, IN, *k), "alpha": ()},
    "core": lambda k: {
        LORA[0]: (OUT, RANK, 1, 1), LORA[1]: (RANK, IN, 1, 1), "lora_mid.weight": (RANK, RANK, 3, 3), "alpha": (),
    },
    "dora": lambda k: {
        LORA[0]: (OUT, RANK, *_ones(k)), LORA[1]: (RANK, IN, *k), "alpha": (), "dora_scale": (1, IN, *_ones(k)),
    },
    "loha": lambda k: {
        f"hada_w{side}_{half}": (OUT, RANK) if half == "a" else (RANK, IN * _taps(k)) for side in "12" for half in "ab"
    } | {"alpha": ()},
    "lokr": lambda k: {"lokr_w1": (4, 2), "lokr_w2_a": (4, RANK), "lokr_w2_b": (RANK, 4 * _taps(k)), "alpha": ()},
    "lokr core": lambda k: {
        "lokr_w1": (4, 2), "lokr_w2_a": (RANK, 4), "lokr_w2_b": (RANK, 4), "lokr_t2": (RANK, RANK, 3, 3), "alpha": (),
    },
    "glora": lambda k: {
        "a1.weight": (IN, RANK), "a2.weight": (RANK, IN), "b1.weight": (OUT, RANK), "b2.weight": (RANK, IN, *k),
        "alpha": (),
    },
    "oft": lambda k: {"oft_blocks": (4, 4, 4), "alpha": (), "rescale": (OUT, *_ones(k), 1)},
    "boft": lambda k: {"oft_blocks": (3, 4, 4, 4), "alpha": ()},
    "ia3": lambda k: {"weight": (OUT,), "on_input": ()},
    "full": lambda k: {"diff": (OUT, IN, *k), "diff_b": (OUT,)},
    "norm": lambda k: {"w_norm": (OUT,), "b_norm": (OUT,)},
    "bias": lambda k: {"diff_b": (OUT,)},
    "peft": lambda k: {"lora_B.weight": (OUT, RANK, *_ones(k)), "lora_A.weight": (RANK, IN, *k)},
}  # fmt: skip
FOREIGN = (
    "lora_unet_double_blocks_0_img_attn_qkv", "transformer.single_transformer_blocks.3.attn.to_q",
    "lora_unet_joint_blocks_1_x_block_attn_qkv", "diffusion_model.blocks.0.self_attn.q",
    "diffusion_model.layers.2.attention.to_q", "transformer_blocks.0.img_mlp.net.2", "lora_prior_unet_x", "lycoris_x",
    "unet.conv_in", "lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_te2_text_projection",
    "lora_unet_[red]x[/red]", "lora_unet_\x1b[31mx", "lora_unet_\n_x", "lora_unet_" + "x" * 400, "lora_unet_",
    "lora_unet_input_blocks_99_7_x", "lora_unet_output_blocks_0_5_x", "lora_unet_down_blocks_1000_x", "x", "",
)  # fmt: skip
"""Names of layers of other models, and names that break programs."""
NUMBERS = {"F16": "e", "F32": "f", "F64": "d"}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
         "U8": 1, "BOOL": 1}  # fmt: skip
METADATA = (
    "ss_tag_frequency", "ss_dataset_dirs", "ss_bucket_info", "lora_adapter_metadata", "lora_wizard.alphas",
    "lora_wizard.config", "ss_base_model_version", "ss_network_dim", "ss_steps", "modelspec.trigger_phrase",
    "sshs_model_hash", "ss_network_args", "modelspec.thumbnail",
)  # fmt: skip
VALUES = (
    "", "None", "[]", "{}", "null", "1e999", '{"a": {"b": "c"}}', '{"a": {"b": NaN}}', '{"a": 1}',
    '{"a": {"n_repeats": null}}', '{"unet.lora_alpha": "x"}', '{"unet.alpha_pattern": [1]}', "[" * 5000, "\x1b[31mred",
    "[/red]", "\ud83d\ude00", '{"base_model": {"family": 3}}', '{"base_model": []}', '{"x": [0, "F16"]}', "9" * 5000,
    '{"unet.lora_alpha": null, "unet.alpha_pattern": {"to_q": null}}', "\n\n", "sdxl_base_v1-0",
)  # fmt: skip


class File:
    """A network file in pieces, so that one can be broken and the rest still be sound."""

    def __init__(self, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, Any]) -> None:
        self.tensors, self.metadata = tensors, metadata

    def content(self) -> bytes:
        document: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        body = b""
        for name, (dtype, shape, data) in self.tensors.items():
            document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        return packed(json.dumps(document).encode("utf-8", "surrogatepass"), body)


def packed(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def tensor(chance: random.Random, dtype: str, shape: tuple[int, ...], value: float | None = None) -> Any:
    count = 1
    for side in shape:
        count *= side
    numbers = [chance.uniform(-1, 1) if value is None else value for _ in range(count)]
    return dtype, shape, struct.pack(f"<{count}{NUMBERS[dtype]}", *numbers)


def network(chance: random.Random, algorithm: str | None = None) -> File:
    """A sound file of an algorithm on a linear layer and a convolution."""
    algorithm = algorithm or chance.choice(list(ALGORITHMS))
    dtype = chance.choice(list(NUMBERS))
    tensors = {}
    for module, (_, kernel) in PLACES.items():
        if algorithm == "peft":
            module = module.replace("lora_unet_mid_block_", "unet.mid_block.").replace("_0", ".0").replace(".0_", ".0.")
        if "core" in algorithm and not kernel:
            continue
        for part, shape in ALGORITHMS[algorithm](kernel).items():
            value = float(RANK) if part == "alpha" else None
            tensors[f"{module}.{part}"] = tensor(chance, dtype, shape, value)
    return File(tensors, {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora"})


def base(chance: random.Random) -> File:
    """A base model of the same two layers."""
    return File({name: tensor(chance, "F32", (OUT, IN, *kernel)) for name, kernel in PLACES.values()}, {})


# What goes wrong with the pieces: the file stays a sound safetensors file.


def _some(chance: random.Random, file: File) -> str:
    return chance.choice(list(file.tensors))


def gone(chance: random.Random, file: File) -> None:
    for _ in range(chance.randrange(1, 3)):
        if file.tensors:
            del file.tensors[_some(chance, file)]


def renamed(chance: random.Random, file: File) -> None:
    old, new = chance.choice(list(PLACES)), chance.choice(FOREIGN)
    every = chance.random() < 0.5
    file.tensors = {
        new + name[len(name.split(".", 1)[0]) :] if every or name.startswith(old) else name: value
        for name, value in file.tensors.items()
    }


def another_part(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    other = chance.choice([part for shapes in ALGORITHMS.values() for part in shapes(())])
    file.tensors[f"{name.split('.', 1)[0]}.{other}"] = file.tensors[name]


def other_shape(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    dtype = chance.choice(list(NUMBERS))
    shape = tuple(chance.choice((0, 1, 2, 3, 4, 5, 8, 16)) for _ in range(chance.randrange(6)))
    file.tensors[name] = tensor(chance, dtype, shape)


def turned(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    dtype, shape, data = file.tensors[name]
    file.tensors[name] = dtype, shape[::-1], data


def nothing_inside(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    sides = [chance.choice((1, 7, 2**31, 2**40, 2**62, 2**63, 2**70)) for _ in range(chance.randrange(3))]
    sides.insert(chance.randrange(len(sides) + 1), 0)
    file.tensors[name] = file.tensors[name][0], tuple(sides), b""


def not_finite(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    dtype, shape, _ = file.tensors[name]
    if dtype in NUMBERS:
        file.tensors[name] = tensor(chance, dtype, shape, chance.choice((float("nan"), float("inf"), -float("inf"))))


def constant(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    dtype, shape, _ = file.tensors[name]
    if dtype in NUMBERS:
        largest = {"F16": 65504.0, "F32": 3e38, "F64": 1e308}[dtype]
        file.tensors[name] = tensor(chance, dtype, shape, chance.choice((0.0, -1.0, largest, -largest, 1e-7)))


def other_numbers(chance: random.Random, file: File) -> None:
    name = _some(chance, file)
    dtype, shape, data = file.tensors[name]
    count = len(data) // BYTES[dtype]
    new = chance.choice(list(BYTES))
    file.tensors[name] = new, shape, (chance.randbytes if new != "BOOL" else bytes)(count * BYTES[new])


def odd_alpha(chance: random.Random, file: File) -> None:
    for name in [name for name in file.tensors if name.endswith(".alpha")]:
        shape = chance.choice(((), (1,), (2,), (1, 1), (0,)))
        value = chance.choice((0.0, -2.0, 1e-30, 3e4, float("nan"), float("inf")))
        file.tensors[name] = tensor(chance, chance.choice(list(NUMBERS)), shape, value)


def odd_metadata(chance: random.Random, file: File) -> None:
    for _ in range(chance.randrange(1, 4)):
        file.metadata[chance.choice(METADATA)] = chance.choice(VALUES)


PIECES = (
    gone, renamed, another_part, other_shape, turned, nothing_inside, not_finite, constant, other_numbers, odd_alpha,
    odd_metadata,
)  # fmt: skip

# What goes wrong with the bytes: the file is no sound safetensors file, or another kind of file altogether.


def cut(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def longer(chance: random.Random, content: bytes) -> bytes:
    return content + chance.randbytes(chance.randrange(1, 100))


def other_header_length(chance: random.Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    new = chance.choice((0, 1, length - 1, length + 1, length * 2, 10**8, 10**8 + 1, 2**63, 2**64 - 1))
    return struct.pack("<Q", max(0, new)) + content[8:]


def scratched(chance: random.Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for _ in range(chance.randrange(1, 20)):
        broken[chance.randrange(len(broken))] = chance.randrange(256)
    return bytes(broken)


def header_changed(chance: random.Random, content: bytes) -> bytes:
    """The header says something else of its tensors; the body stays."""
    (length,) = struct.unpack("<Q", content[:8])
    document = json.loads(content[8 : 8 + length])
    body = content[8 + length :]
    names = [name for name in document if name != "__metadata__"]
    if not names:
        return content
    entry = document[chance.choice(names)]
    odd = chance.choice((-1, 0, 1, 2**31, 2**63, 2**64, 1.5, "4", None, True, [], {}))
    what = chance.randrange(8)
    if what == 0:
        entry["data_offsets"][chance.randrange(2)] = odd
    elif what == 1:
        shift = chance.choice((-8, -4, -1, 1, 4, 8))
        entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
    elif what == 2:
        entry["data_offsets"] = chance.choice(
            ([], [0], [0, 1, 2], None, 0, "ab", list(document[names[0]]["data_offsets"]))
        )
    elif what == 3:
        entry["shape"] = chance.choice(([odd], [1, odd], odd, [2**32, 2**32], [-1, -1], [[]]))
    elif what == 4:
        entry["dtype"] = chance.choice((odd, "F4", "f32", "", [], {}, None))
    elif what == 5:
        del entry[chance.choice(list(entry))]
    elif what == 6:
        document[chance.choice((names[0], "__metadata__", "new"))] = chance.choice((odd, {"a": odd}, [odd], "x"))
    else:  # a name twice
        pairs = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()]
        pairs.append(f"{json.dumps(names[0])}: {json.dumps(document[chance.choice(names)])}")
        return packed(("{" + ", ".join(pairs) + "}").encode(), body)
    return packed(json.dumps(document).encode(), body)


def not_json(chance: random.Random, content: bytes) -> bytes:
    return packed(chance.choice((b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"null", b"[]", b'"x"', b"{}")), b"")


def another_kind(chance: random.Random, content: bytes) -> bytes:
    page = b"<!doctype html><title>404</title>" * chance.randrange(1, 90)
    return chance.choice((b"", b"\0" * 9000, page, chance.randbytes(5000), zipped({"a.txt": b"hello"})))


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


BYTEWISE = (cut, longer, other_header_length, scratched, header_changed, header_changed, not_json, another_kind)


class Payload:
    """What a pickle with code in it would do: make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled(chance: random.Random, marker: Path) -> bytes:
    """A PyTorch file, sound or broken or with code in it, or a pickle of something else."""
    import torch

    lora = {
        f"{LINEAR}.lora_up.weight": torch.randn(OUT, RANK), f"{LINEAR}.lora_down.weight": torch.randn(RANK, IN),
    }  # fmt: skip
    code = Payload(marker)
    documents = (
        lora, {"state_dict": lora, "x": code}, {"state_dict": {"state_dict": lora}}, [torch.zeros(2)], code,
        {"string_to_param": {"*": torch.zeros(2, 768)}, "name": "x"}, {"model": code}, {1: torch.zeros(2)}, "text",
        {"a": torch.zeros(2, 2).to_sparse()}, {"state_dict": {}}, None,
        {"a.lora_up.weight": torch.zeros(2, 2, dtype=torch.complex64), "a.lora_down.weight": torch.zeros(2, 2)},
        {"a.lora_up.weight": torch.zeros(2, 2, device="meta"), "a.lora_down.weight": torch.zeros(2, 2)},
    )  # fmt: skip
    document = chance.choice(documents)
    out = io.BytesIO()
    if chance.random() < 0.3:
        out.write(pickle.dumps(chance.choice((code, {"a": code}, {"a": 1}, [1], b"x"))))
    else:
        torch.save(document, out, _use_new_zipfile_serialization=chance.random() < 0.7)
    return cut(chance, out.getvalue()) if chance.random() < 0.3 else out.getvalue()


def write_case(folder: Path, chance: random.Random, sound: Callable[[], File], marker: Path) -> tuple[Path, str]:
    """A broken file in the folder, and what was done to it."""
    if chance.random() < 0.12:
        path = folder / f"broken{chance.choice(('.pt', '.ckpt', '.bin', '.pth', '.PT'))}"
        path.write_bytes(pickled(chance, marker))
        return path, "pickle"
    if chance.random() < 0.06:
        return _no_file(folder, chance)
    path = folder / chance.choice(("broken.safetensors", "broken.safetensors", "bro[red]ken .safetensors", "broken"))
    file, done = sound(), []
    for change in chance.choices(PIECES, k=chance.randrange(3)):
        if file.tensors:
            change(chance, file)
            done.append(change.__name__)
    content = file.content()
    if not done or chance.random() < 0.4:
        change_bytes = chance.choice(BYTEWISE)
        if len(content) > 8:
            content = change_bytes(chance, content)
        done.append(change_bytes.__name__)
    path.write_bytes(content)
    return path, "+".join(done)


def _no_file(folder: Path, chance: random.Random) -> tuple[Path, str]:
    what = chance.choice(("nothing", "folder", "link to nothing", "link to itself", "pipe", "device", "long name"))
    path = folder / "broken.safetensors"
    if what == "folder":
        path.mkdir()
        if chance.random() < 0.5:
            (path / "unet").mkdir()
            (path / "unet" / "x.safetensors").write_bytes(b"x")
    elif what == "link to nothing":
        path.symlink_to(folder / "not there")
    elif what == "link to itself":
        path.symlink_to(path)
    elif what == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif what == "device":
        path = Path(os.devnull)
    elif what == "long name":
        path = folder / ("x" * 300 + ".safetensors")
    return path, what


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("inspect", "BROKEN"), ("inspect", "BROKEN", "--json", "--chart", "out/chart.png"),
    ("inspect", "BROKEN", "--layers", "--base", "BASE"), ("inspect", "DORA", "--base", "BROKEN"),
    ("resize", "BROKEN", "--rank", "1", "-o", "OUT"),
    ("resize", "BROKEN", "--norm", "0.9", "--base", "BASE", "-o", "OUT"),
    ("resize", "BROKEN", "--values", "0.9", "--alpha", "3", "--precision", "fp16", "--json", "-o", "OUT"),
    ("convert", "BROKEN", "-o", "OUT"), ("convert", "BROKEN", "--names", "peft", "-o", "OUT"),
    ("convert", "BROKEN", "--names", "sd-scripts", "--precision", "fp16", "-o", "OUT"),
    ("convert", "BROKEN", "--names", "diffusers-paths", "--rank", "2", "--base", "BASE", "-o", "OUT"),
    ("merge", "BROKEN", "-o", "OUT"), ("merge", "GOOD", "BROKEN", "-w", "1", "-w", "0.5", "-o", "OUT"),
    ("merge", "BROKEN", "GOOD", "--rank", "2", "--base", "BASE", "-o", "OUT"),
    ("merge", "BROKEN", "--into", "BASE", "-o", "OUT"), ("merge", "GOOD", "--into", "BROKEN", "-o", "OUT"),
    ("extract", "BASE", "BROKEN", "--rank", "2", "-o", "OUT"),
    ("extract", "BROKEN", "BASE", "--norm", "0.9", "-o", "OUT"),
    ("metadata", "BROKEN"), ("metadata", "BROKEN", "--set", "title=x"), ("metadata", "BROKEN", "--strip", "-o", "OUT"),
    ("metadata", "GOOD", "--thumbnail", "BROKEN", "-o", "OUT"),
    ("publish", "BROKEN", "--license", "mit", "--dry-run"),
)  # fmt: skip
IN_PLACE = ("metadata", "BROKEN", "--set", "title=x")


def fingerprint(path: Path) -> str:
    if not os.path.lexists(path):
        return "missing"
    if path.is_symlink() or not path.is_file():
        return "no file"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def failure(folder: Path, command: tuple[str, ...], broken: Path, others: dict[str, Path]) -> str | None:
    """What this command did that it must not, or None."""
    out = folder / "out"
    target = out / "result.safetensors"
    names = {"BROKEN": broken, "OUT": target, "out/chart.png": out / "chart.png", **others}
    words = [str(names.get(word, word)) for word in command]
    before = {path: fingerprint(path) for path in (broken, *others.values())}
    there = sorted(path.name for path in folder.iterdir())
    result = CliRunner().invoke(tools, words, standalone_mode=False)
    error = result.exception
    if error is not None and not isinstance(error, PlainError | click.ClickException):
        where = traceback.extract_tb(error.__traceback__)
        ours = [f for f in where if "/site-packages/" not in f.filename and "/pyenv/" not in f.filename] or where
        return f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {type(error).__name__}: {str(error)[:200]}"
    in_place = command == IN_PLACE and error is None
    for path, was in before.items():
        if fingerprint(path) != was and not (in_place and path == broken):
            return f"{path.name} was changed"
    if sorted(path.name for path in folder.iterdir()) != there:
        return "something was left behind"
    made = sorted(path.name for path in out.iterdir())
    if error is not None:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        if made:
            return f"failed, and left {made}"
        if "\n" in text or (not text.endswith((".", "…)", ")", "?")) and "lora-wizard" not in text):
            return f"not a sentence: {text!r}"
        if getattr(error, "exit_code", 0) == 0:
            return "exit code 0"
        if any(not word.isprintable() for word in text):
            return f"characters that no terminal shows: {text!r}"
        return None
    for path in out.iterdir():
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping)
                    opened.get_tensor(name)
            TensorFile(path)
        path.unlink()
    if "\x1b" in result.stdout:
        return "an escape sequence reached the terminal"
    return None


def cases(folder: Path, count: int, seed: int, every_command: bool = True) -> Iterator[tuple[str, str | None]]:
    """Runs them; for each what was done to which command, and what went wrong."""
    chance = random.Random(seed)
    others = {}
    for name, file in (("GOOD", network(chance, "lora")), ("DORA", network(chance, "dora")), ("BASE", base(chance))):
        others[name] = folder / f"{name.lower()}.safetensors"
        others[name].write_bytes(file.content())
    (folder / "out").mkdir()
    marker = folder / "a pickle was here"
    for number in range(count):
        of_base = number % 4 == 0
        commands = [command for command in COMMANDS if _takes_base(command) == of_base or command[0] == "metadata"]
        for command in commands if every_command else [chance.choice(commands)]:
            sound = (lambda: base(chance)) if of_base else (lambda: network(chance))
            broken, what = write_case(folder, chance, sound, marker)
            said = failure(folder, command, broken, others)
            if marker.exists():
                said = "code from the file was executed"
                marker.rmdir()
            yield f"{number} {' '.join(command)}: {what}", said
            _removed(broken)
            for left in (folder / "out").iterdir():
                left.unlink()


def _takes_base(command: tuple[str, ...]) -> bool:
    return command[0] == "extract" or command[command.index("BROKEN") - 1] in ("--into", "--base")


def _removed(path: Path) -> None:
    import shutil

    if len(path.name) > 200 or str(path) == os.devnull:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ran, wrong = 0, Counter()
    with tempfile.TemporaryDirectory(prefix="lora-wizard-broken-") as folder:
        for case, said in cases(Path(folder), options.cases, options.seed):
            ran += 1
            if said is not None:
                wrong[said] += 1
                sys.stdout.write(f"{case}\n    {said}\n")
                sys.stdout.flush()
    sys.stdout.write(f"{ran} commands on broken files, {sum(wrong.values())} of them wrong\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
