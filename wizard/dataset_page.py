"""A dataset to look at: a contact sheet as one PNG, and a page that needs nothing else. Both show what was found."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from engine.dataset.examine import Examined
from engine.dataset.findings import SEVERITIES, DatasetFinding
from engine.dataset.images import TURNS, UNREADABLE, as_rgb, opened, orientation
from engine.dataset.inspect import Inspection
from engine.run_folder import whole_file
from wizard.report import STYLE
from wizard.words import agreeing, count, size

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

COLOURS = {"blocks": "#d00000", "high": "#c25e00", "warning": "#b08000", "note": "#6b7183", "": "#2b9348"}
"""A picture's frame: the worst that was found about it."""
SEVERITY_WORDS = {"blocks": "mend first", "high": "mend", "warning": "worth a look", "note": "good to know"}

SHEET_SIDE, SHEET_COLUMNS, SHEET_MOST = 168, 6, 240
PAGE_SIDE = 220
TAGS_SHOWN, FILES_SHOWN = 30, 6


def contact_sheet(inspection: Inspection, path: Path) -> Path:
    """All pictures on one sheet, the ones with findings first; at most SHEET_MOST of them."""
    from PIL import Image, ImageDraw

    pictures = _worst_first(inspection)[:SHEET_MOST]
    title, label = _font("DejaVuSans-Bold.ttf", 22), _font("DejaVuSans.ttf", 12)
    columns = max(1, min(SHEET_COLUMNS, len(pictures)))
    cell, tall, margin, head = SHEET_SIDE + 20, SHEET_SIDE + 62, 24, 76
    rows = -(-len(pictures) // columns)
    width = max(columns * cell + 2 * margin - 20, 520)
    sheet = Image.new("RGB", (width, head + rows * tall + margin), "white")
    draw = ImageDraw.Draw(sheet)
    more = len(inspection.pictures) - len(pictures)
    draw.text((margin, 16), f"{count(len(inspection.pictures), 'picture')}", "#1f2430", title)
    left_out = f" · {more} more {agreeing(more, 'is', 'are')} not on this sheet" if more else ""
    aside = f"{summary(inspection)}{left_out}"
    draw.text((margin, 46), aside, "#6b7183", label)
    for index, picture in enumerate(pictures):
        left, top = margin + index % columns * cell, head + index // columns * tall
        findings = _findings(inspection, picture)
        colour = COLOURS[findings[0].severity if findings else ""]
        thumbnail = _thumbnail(picture.path, SHEET_SIDE)
        if thumbnail is None:
            draw.rectangle((left, top, left + SHEET_SIDE, top + SHEET_SIDE), "#f3f3f7")
            draw.text((left + 10, top + SHEET_SIDE // 2 - 8), "cannot be read", "#6b7183", label)
        else:
            x, y = left + (SHEET_SIDE - thumbnail.width) // 2, top + (SHEET_SIDE - thumbnail.height) // 2
            sheet.paste(thumbnail, (x, y))
        draw.rectangle((left - 3, top - 3, left + SHEET_SIDE + 2, top + SHEET_SIDE + 2), outline=colour, width=2)
        draw.text((left, top + SHEET_SIDE + 6), _fitted(picture.path.name, label, SHEET_SIDE), "#1f2430", label)
        facts = f"{picture.width}×{picture.height}" if picture.width else "?"
        words = f"{facts}  {findings[0].kind.replace('-', ' ')}" if findings else facts
        draw.text((left, top + SHEET_SIDE + 22), _fitted(words, label, SHEET_SIDE), colour, label)
        caption = picture.caption or ""
        draw.text((left, top + SHEET_SIDE + 38), _fitted(caption, label, SHEET_SIDE), "#6b7183", label)
    with whole_file(path) as partial:
        sheet.save(partial, "PNG")
    return path


def page(inspection: Inspection, path: Path) -> Path:
    """The HTML page: what was found, the shapes, the tags, every picture with its caption."""
    parts = [
        f'<header><p class="kicker">Dataset</p><h1>{count(len(inspection.pictures), "picture")}</h1>'
        f'<p class="quiet">{escape(summary(inspection))}</p></header>',
        _section("What to mend", _findings_list(inspection)),
        _section(f"Shape groups at {inspection.resolution} pixels", _bucket_bars(inspection)),
        _section("Words in the captions", _tag_bars(inspection)),
        _section("The pictures", _gallery(inspection)),
    ]
    with whole_file(path) as partial:
        partial.write_text(
            PAGE.format(
                title=count(len(inspection.pictures), "picture"), style=STYLE + OWN_STYLE, body="\n".join(parts)
            ),
            encoding="utf-8",
            errors="replace",  # a file's name may be no text at all
        )
    return path


def summary(inspection: Inspection) -> str:
    """What the dataset holds, in one line."""
    formats = ", ".join(f"{number} {name}" for name, number in inspection.formats().items())
    shapes = ", ".join(f"{number} {name}" for name, number in inspection.shapes().items() if number)
    captions = f"{inspection.captions} with captions" if inspection.captions else "no captions"
    total = size(sum(picture.file_bytes for picture in inspection.pictures))
    return " · ".join(part for part in (formats, shapes, captions, total) if part)


def framing_in_words(inspection: Inspection) -> str:
    """How near the pictures are taken, as far as the captions say it; empty without captions."""
    told = {framing: number for framing, number in inspection.framing.items() if framing}
    silent = inspection.framing.get("", 0)
    if not told:
        return "No caption says how near its picture is taken; look at that yourself." if silent else ""
    said = ", ".join(f"{number} {framing}" for framing, number in told.items())
    rest = f"; {count(silent, 'caption')} {'does' if silent == 1 else 'do'} not say" if silent else ""
    return f"How near the pictures are taken, by their captions: {said}{rest}."


def _worst_first(inspection: Inspection) -> list[Examined]:
    def rank(picture: Examined) -> int:
        findings = _findings(inspection, picture)
        return SEVERITIES.index(findings[0].severity) if findings else len(SEVERITIES)

    return sorted(inspection.pictures, key=rank)


def _findings(inspection: Inspection, picture: Examined) -> Sequence[DatasetFinding]:
    return inspection.by_picture.get(picture.path, ())


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _findings_list(inspection: Inspection) -> str:
    if not inspection.findings:
        return "<p>Nothing stands out. Good pictures!</p>"
    return f'<ul class="findings">{"".join(_finding_lines(inspection))}</ul>'


def _finding_lines(inspection: Inspection) -> Iterator[str]:
    for finding in inspection.findings:
        yield (
            f'<li class="{finding.severity}"><b>{SEVERITY_WORDS[finding.severity]}</b>'
            f"<div>{escape(finding.message)}{_files(finding.files)}</div></li>"
        )


def _files(files: Sequence[str]) -> str:
    """A few names in a line, many behind a click."""
    names = [escape(Path(name).name) for name in files]
    if len(names) <= FILES_SHOWN:
        return f"<small>{', '.join(names)}</small>" if names else ""
    items = "".join(f"<li>{name}</li>" for name in names)
    return f"<details><summary>{count(len(names), 'file')}</summary><ul>{items}</ul></details>"


def _bucket_bars(inspection: Inspection) -> str:
    most = max((row.views for row in inspection.buckets), default=0)
    lines = [
        (
            f"{row.width} × {row.height}",
            row.views,
            f"{count(row.views, 'view')} in {count(row.batches, 'batch', 'batches')}",
        )
        for row in inspection.buckets
    ]
    return _bars(lines, most)


def _tag_bars(inspection: Inspection) -> str:
    frequency = list(inspection.tag_frequency.items())
    if not frequency:
        return ""
    note = f"<p class=quiet>The longest caption has {count(inspection.most_tokens, 'token')}. "
    if inspection.trigger_word:
        note += (
            f"The trigger word “{escape(inspection.trigger_word)}” stands in {inspection.trigger_captions} of "
            f"{count(inspection.captions, 'caption')}. "
        )
    note += f"{escape(framing_in_words(inspection))} "
    if len(frequency) > TAGS_SHOWN:
        note += f"The {TAGS_SHOWN} most frequent of {len(frequency)}."
    lines = [(tag, number, f"{number}") for tag, number in frequency[:TAGS_SHOWN]]
    return f"{note}</p>{_bars(lines, max(inspection.captions, 1))}"


def _bars(lines: Sequence[tuple[str, int, str]], most: int) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=bar><i style='width:{100 * value / most:.1f}%'></i></td>"
        f"<td class=number>{escape(words)}</td></tr>"
        for name, value, words in lines
    )
    return f"<table class=bars>{rows}</table>"


def _gallery(inspection: Inspection) -> str:
    return f'<div class="gallery">{"".join(_cards(inspection))}</div>'


def _cards(inspection: Inspection) -> Iterator[str]:
    for picture in _worst_first(inspection):
        findings = _findings(inspection, picture)
        marks = "".join(
            f'<span class="{finding.severity}">{escape(finding.kind.replace("-", " "))}</span>' for finding in findings
        )
        worst = findings[0].severity if findings else "fine"
        facts = (
            f"{picture.width} × {picture.height} · {size(picture.file_bytes)}"
            if picture.width
            else escape(picture.error)
        )
        caption = escape(picture.caption or "") or "<i>no caption</i>"
        yield (
            f'<div class="card {worst}">{_inline(picture.path)}<b>{escape(picture.path.name)}</b>'
            f'<small>{facts}</small><p>{caption}</p><div class="marks">{marks}</div></div>'
        )


def _inline(path: Path) -> str:
    thumbnail = _thumbnail(path, PAGE_SIDE)
    if thumbnail is None:
        return '<div class="gone">cannot be read</div>'
    content = io.BytesIO()
    thumbnail.save(content, "JPEG", quality=80)
    encoded = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{encoded}">'


def _thumbnail(path: Path, side: int) -> Image | None:
    """The picture no larger than this, upright; None for one that cannot be read."""
    try:
        with opened(path) as image:
            turn = TURNS.get(orientation(image))
            image.draft("RGB", (side, side))
            image.thumbnail((side, side))
            picture = as_rgb(image)
    except UNREADABLE:
        return None
    return picture.transpose(turn) if turn is not None else picture


def _font(file: str, points: int) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), points)


def _fitted(text: str, font: FreeTypeFont, width: int) -> str:
    """The text's first line, cut with an ellipsis where it is wider than this."""
    text = text.split("\n")[0]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


OWN_STYLE = """
.findings { list-style: none; margin: 0; padding: 0 }
.findings > li { display: grid; grid-template-columns: 8.5rem 1fr; gap: .8rem; padding: .55rem 0;
  border-bottom: 1px solid var(--hair) }
.findings > li:last-child { border: 0 }
.findings details ul { columns: 3; font-size: .88rem; color: var(--quiet); padding-left: 1.1rem }
.findings small { display: block; color: var(--quiet); overflow-wrap: anywhere }
.blocks > b, .marks .blocks { color: #b00000 } .high > b, .marks .high { color: #a04f00 }
.warning > b, .marks .warning { color: #8a6500 } .note > b, .marks .note { color: var(--quiet) }
.bars { table-layout: fixed }
.bars td { padding: .2rem .8rem .2rem 0; border: 0; vertical-align: middle; overflow-wrap: anywhere }
.bars td:first-child { width: 32% } .bars .number { width: 26% }
.bars i { display: block; height: .7rem; min-width: 2px; border-radius: 3px; background: var(--accent) }
.bars .number { color: var(--quiet); text-align: right }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.1rem }
.card { border-top: 3px solid #2b9348; padding-top: .5rem; font-size: .85rem; line-height: 1.4;
  overflow-wrap: anywhere }
.card.blocks { border-color: #d00000 } .card.high { border-color: #c25e00 } .card.warning { border-color: #b08000 }
.card.note { border-color: #6b7183 }
.card img, .card .gone { width: 100%; aspect-ratio: 1; object-fit: contain; background: #f3f3f7; border-radius: 6px }
.card .gone { display: grid; place-items: center; color: var(--quiet) }
.card small { display: block; color: var(--quiet) } .card p { margin: .25rem 0; max-height: 5.6em; overflow: auto }
@media (max-width: 36rem) {
  .findings > li { grid-template-columns: 1fr; gap: .1rem } .findings details ul { columns: 1 }
  .bars td:first-child { width: 40% } .bars .number { width: 34% }
}
.marks span { display: inline-block; margin-right: .6em; font-weight: 600 }
"""

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><main>
{body}
</main></body>
</html>
"""
