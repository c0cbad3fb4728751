"""A sheet of labelled pictures in blocks under a title."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.run_folder import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

INK = "#1f2430"
QUIET = "#8a90a0"
HAIR = "#e6e8ee"
ACCENT = "#9b2fae"
PAPER = "#ffffff"


class Sheet:
    """Labelled pictures in blocks under a title, drawn with Pillow so that every pixel of a sample stays what it is."""

    margin, gap, between = 36, 10, 34

    def __init__(self, title: str, subtitle: str, side: int) -> None:
        self.title, self.subtitle, self.side = title, subtitle, side
        self.fonts = {name: _font(*look) for name, look in FONTS.items()}

    def block(self, caption: str, pictures: list[tuple[str, Image | None]], strong: int | None = None) -> Image:
        """A caption above a row of pictures, each with its label; the label of number `strong` stands out."""
        from PIL import Image, ImageDraw

        shown = [(label, _sized(picture, self.side)) for label, picture in pictures]
        width = sum(picture.width for _, picture in shown) + self.gap * (len(shown) - 1)
        lines = _wrapped(f"“{caption}”" if caption else "(no prompt)", self.fonts["caption"], width)
        line = _height(self.fonts["caption"])
        top = line * len(lines) + 8
        tall = max(picture.height for _, picture in shown)
        block = Image.new("RGB", (width, top + tall + _height(self.fonts["label"]) + 4), PAPER)
        draw = ImageDraw.Draw(block)
        for index, text in enumerate(lines):
            draw.text((0, index * line), text, INK, self.fonts["caption"])
        left = 0
        for index, (label, picture) in enumerate(shown):
            block.paste(picture, (left, top))
            draw.text(
                (left, top + tall + 6),
                label,
                ACCENT if index == strong else QUIET,
                self.fonts["strong" if index == strong else "label"],
            )
            left += picture.width + self.gap
        return block

    def text(self, text: str, width: int) -> Image:
        """A paragraph as a block of this width."""
        from PIL import Image, ImageDraw

        font = self.fonts["caption"]
        lines = _wrapped(text, font, width, most=12)
        block = Image.new("RGB", (width, _height(font) * len(lines)), PAPER)
        for index, line in enumerate(lines):
            ImageDraw.Draw(block).text((0, index * _height(font)), line, INK, font)
        return block

    def save(self, blocks: list[Image], columns: int, path: Path) -> Path:
        """The blocks in this many columns, row by row; written to `path` as PNG."""
        sheet = self.drawn(blocks, columns)
        with whole_file(path) as partial:
            sheet.save(partial, format="PNG")
        return path

    def drawn(self, blocks: list[Image], columns: int) -> Image:
        """The blocks under the title, in this many columns, row by row."""
        from PIL import Image, ImageDraw

        rows = [blocks[start : start + columns] for start in range(0, len(blocks), columns)]
        across = max(block.width for block in blocks)
        head = _height(self.fonts["title"]) + _height(self.fonts["label"]) + 26
        wide = max(
            across * min(columns, len(blocks)) + self.between * (min(columns, len(blocks)) - 1),
            math.ceil(self.fonts["label"].getlength(self.subtitle)),
        )
        tall = sum(max(block.height for block in row) for row in rows) + self.between * (len(rows) - 1)
        sheet = Image.new("RGB", (wide + 2 * self.margin, head + tall + 2 * self.margin), PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((self.margin, self.margin - 8), self.title, INK, self.fonts["title"])
        draw.text(
            (self.margin, self.margin + _height(self.fonts["title"]) - 2), self.subtitle, QUIET, self.fonts["label"]
        )
        top = self.margin + head
        for row in rows:
            low = max(block.height for block in row)
            for index, block in enumerate(row):
                # captions may need different numbers of lines; the pictures of a row still stand in line
                sheet.paste(block, (self.margin + index * (across + self.between), top + low - block.height))
            top += low + self.between
        return sheet


FONTS = {
    "title": ("DejaVuSans-Bold.ttf", 26),
    "caption": ("DejaVuSans.ttf", 16),
    "label": ("DejaVuSans.ttf", 14),
    "strong": ("DejaVuSans-Bold.ttf", 14),
}
"""matplotlib ships these, so captions in Cyrillic or Greek are readable on every system."""


def _font(file: str, size: int) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), size)


def _height(font: FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return round((ascent + descent) * 1.15)


def _sized(picture: Image | None, side: int) -> Image:
    """The picture near this side: small ones enlarged by whole pixels, large ones reduced smoothly."""
    from PIL import Image

    if picture is None:
        return Image.new("RGB", (side, side), HAIR)
    factor = side / max(picture.size)
    if factor >= 2:
        times = round(factor)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    if factor < 1:
        return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS)
    return picture


def _wrapped(text: str, font: Any, width: int, most: int = 4) -> list[str]:
    """The text in lines that fit the width; what does not fit into `most` lines is cut, with an ellipsis."""
    lines, current = [], ""
    for word in text.split():
        longer = f"{current} {word}".strip()
        if current and font.getlength(longer) > width:
            lines.append(current)
            current = word
        else:
            current = longer
    lines.append(current)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip(" ,") + "…"]
    return lines
