"""How long a dataset takes to be inspected: python tests/benchmarks/inspection.py [PICTURES] [SIDE].

Makes that many JPEG pictures with captions, each another one, and inspects them as `lora-wizard dataset inspect` does.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from engine.dataset.inspect import inspect_dataset
from knowledge.config import DatasetFolder, DatasetSettings


def make(folder: Path, side: int, number: int) -> None:
    """A picture of shapes and grain, whose file is about as large as a photograph's, and its caption."""
    draw_from = random.Random(number)
    picture = Image.effect_noise((side, side), 40).convert("RGB").filter(ImageFilter.GaussianBlur(1))
    draw = ImageDraw.Draw(picture)
    for _ in range(40):
        x, y, reach = draw_from.randrange(side), draw_from.randrange(side), draw_from.randrange(side // 12, side // 3)
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), tuple(draw_from.choices(range(256), k=3)))
    picture.save(folder / f"{number:05d}.jpg", quality=92)
    (folder / f"{number:05d}.txt").write_text(f"sks, place {number}, red ball, standing, looking at viewer")


def main(pictures: int = 1000, side: int = 1024) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(make, folder, side), range(pictures)))
        total = sum(file.stat().st_size for file in folder.glob("*.jpg"))
        settings = DatasetSettings(folders=(DatasetFolder(path=place),), trigger_word="sks", resolution=side)
        wall, work = time.perf_counter(), time.process_time()
        found = inspect_dataset(settings)
        wall, work = time.perf_counter() - wall, time.process_time() - work
        what = f"{len(found.pictures):,} pictures of {side} x {side}, {total / 1e6:,.0f} MB"
        sys.stdout.write(f"{what}: {wall:.1f} s on the clock, {work:.1f} s of work\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
