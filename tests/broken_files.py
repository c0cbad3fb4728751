"""A folder of files that are broken on purpose, in every way that has a name, and what must be said of each."""

from __future__ import annotations

import io
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIDE = 256


def drawing(chance: random.Random, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Something with edges, never the same twice."""
    picture = Image.new("RGB", size, tuple(chance.choices(range(256), k=3)))
    draw = ImageDraw.Draw(picture)
    for _ in range(14):
        x, y, side = chance.randrange(size[0]), chance.randrange(size[1]), chance.randrange(20, 90)
        draw.ellipse((x - side, y - side, x + side, y + side // 2), tuple(chance.choices(range(256), k=3)))
    return picture


def content(picture: Image.Image, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **how)
    return out.getvalue()


def cut(chance: random.Random, form: str) -> bytes:
    whole = content(drawing(chance), form)
    return whole[: int(len(whole) * chance.uniform(0.4, 0.8))]


def scratched(chance: random.Random) -> bytes:
    """A PNG with some of its compressed bytes changed."""
    whole = bytearray(content(drawing(chance), "PNG"))
    for _ in range(40):
        whole[chance.randrange(80, len(whole) - 20)] ^= 0xFF
    return bytes(whole)


def bomb(chance: random.Random) -> bytes:
    """A PNG whose header claims more pixels than any memory holds."""
    whole = bytearray(content(drawing(chance), "PNG"))
    side = chance.randrange(40_000, 90_000)
    whole[16:24] = struct.pack(">II", side, side)
    return bytes(whole)


def turned(chance: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = chance.choice([2, 3, 4, 5, 6, 7, 8])
    return content(drawing(chance), "JPEG", exif=exif)


def clear(chance: random.Random) -> bytes:
    picture = drawing(chance).convert("RGBA")
    picture.putpixel((chance.randrange(SIDE), chance.randrange(SIDE)), (0, 0, 0, 0))
    return content(picture, "PNG")


def moving(chance: random.Random, form: str) -> bytes:
    return content(drawing(chance), form, save_all=True, append_images=[drawing(chance)])


def blurred(chance: random.Random) -> bytes:
    return content(drawing(chance).filter(ImageFilter.GaussianBlur(chance.uniform(4, 6))), "PNG")


PICTURES: dict[str, tuple[str, str, Callable[[random.Random], bytes]]] = {
    "empty": ("unreadable", ".png", lambda chance: b""),
    "page": ("unreadable", ".jpg", lambda chance: b"<!doctype html><title>404</title>" * chance.randrange(1, 90)),
    "noise": ("unreadable", ".webp", lambda chance: b"\0" + chance.randbytes(chance.randrange(1, 4000))),
    "header only": ("unreadable", ".png", lambda chance: content(drawing(chance), "PNG")[: chance.randrange(1, 20)]),
    "bomb": ("unreadable", ".png", bomb),
    "cut png": ("damaged", ".png", lambda chance: cut(chance, "PNG")),
    "cut jpeg": ("damaged", ".jpg", lambda chance: cut(chance, "JPEG")),
    "cut bmp": ("damaged", ".bmp", lambda chance: cut(chance, "BMP")),
    "scratched": ("damaged", ".png", scratched),
    "jpeg as png": ("mislabelled", ".png", lambda chance: content(drawing(chance), "JPEG")),
    "png as webp": ("mislabelled", ".webp", lambda chance: content(drawing(chance), "PNG")),
    "gif as png": ("mislabelled", ".png", lambda chance: content(drawing(chance), "GIF")),
    "moving webp": ("animated", ".webp", lambda chance: moving(chance, "WEBP")),
    "moving png": ("animated", ".png", lambda chance: moving(chance, "PNG")),
    "print": ("cmyk", ".jpg", lambda chance: content(drawing(chance).convert("CMYK"), "JPEG")),
    "clear": ("transparent", ".png", clear),
    "turned": ("turned", ".jpg", turned),
    "small": ("too-small", ".png", lambda chance: content(drawing(chance, (chance.randrange(1, 90), 40)), "PNG")),
    "ribbon": ("cut", ".png", lambda chance: content(drawing(chance, (chance.randrange(1500, 3000), SIDE)), "PNG")),
    "blurred": ("blurred", ".png", blurred),
    "phone": ("other-formats", ".heic", lambda chance: chance.randbytes(200)),
    "scan": ("other-formats", ".tiff", lambda chance: content(drawing(chance), "TIFF")),
}
"""Files by what is wrong with them: the finding that must name them, their ending, and how one is made."""

CAPTIONS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "latin": ("caption-encoding", lambda chance: f"Zoë {chance.random()}".encode("latin-1")),
    "utf-16 unmarked": ("caption-encoding", lambda chance: f"a cat {chance.random()}".encode("utf-16-le")),
    "binary": ("caption-encoding", lambda chance: b"\xfd\xfe" + chance.randbytes(50) + b"\xff"),
    "blank": ("captions-missing", lambda chance: b" \n\t" * chance.randrange(5)),
    "thin": ("captions-thin", lambda chance: b"sks, toy"),
    "long": ("captions-long", lambda chance: ", ".join(f"tag {chance.randrange(10**6)}" for _ in range(40)).encode()),
    "doubled": ("tags-doubled", lambda chance: b"sks, one thing, one thing, another"),
    "without trigger": ("trigger-missing", lambda chance: f"nobody at the sea, {chance.random()}".encode()),
}

NAMES = (
    "naïve ☃",
    'quote\'s "and" <b>&amp;',
    "-rf",
    "%s {0} $HOME",
    "a\nline",
    "x" * 200,
    os.fsdecode(b"\xff\xfe name"),
)
"""Names that break programs; the last is no text at all."""


def write(folder: Path, each: int, seed: int = 0) -> dict[str, set[str]]:
    """Writes `each` files of every kind; the names that must be found under each kind of finding."""
    chance = random.Random(seed)
    expected: dict[str, set[str]] = {}

    def expect(kind: str, *names: str) -> None:
        expected.setdefault(kind, set()).update(names)

    def good(name: str, caption: bytes | None = None) -> None:
        (folder / f"{name}.png").write_bytes(content(drawing(chance), "PNG"))
        text = f"sks, a thing, place {chance.random()}".encode() if caption is None else caption
        (folder / f"{name}.txt").write_bytes(text)

    for number in range(each):
        for name, (kind, ending, make) in PICTURES.items():
            file = folder / f"{name} {number}{ending}"
            file.write_bytes(make(chance))
            file.with_suffix(".txt").write_text(f"sks, a thing, place {chance.random()}")
            expect(kind, file.name)
            if kind == "other-formats":
                expect("caption-without-picture", file.with_suffix(".txt").name)
        for name, (kind, words) in CAPTIONS.items():
            good(f"{name} {number}", words(chance))
            expect(kind, f"{name} {number}.png")
        (folder / f"orphan {number}.txt").write_text("sks, where is my picture")
        expect("caption-without-picture", f"orphan {number}.txt")
        good(f"twin {number}")
        (folder / f"twin {number}.jpg").write_bytes(content(drawing(chance), "JPEG"))
        expect("same-name", f"twin {number}.png", f"twin {number}.jpg")
        good(f"same {number}")
        (folder / f"copy {number}.png").write_bytes((folder / f"same {number}.png").read_bytes())
        (folder / f"copy {number}.txt").write_text("sks, a copy of it")
        expect("duplicate", f"same {number}.png", f"copy {number}.png")
        good(f"model {number}")
        smaller = Image.open(folder / f"model {number}.png").resize((230, 230))
        (folder / f"again {number}.jpg").write_bytes(content(smaller, "JPEG", quality=70))
        (folder / f"again {number}.txt").write_text("sks, another size of it")
        expect("near-duplicate", f"model {number}.png", f"again {number}.jpg")
    for name in NAMES:
        (folder / f"{name}.png").write_bytes(b"no picture")
        expect("unreadable", f"{name}.png")
    (folder / "nowhere.png").symlink_to(folder / "not there")
    (folder / "folder.png").mkdir()
    expect("unreadable", "nowhere.png")
    expect("folder-as-picture", "folder.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        expect("unreadable", "pipe.png")
    return expected
