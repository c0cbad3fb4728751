"""Captioned scenes for the pocket model, and the creature it has never seen.

Everything is drawn, nothing is collected: a scene is a function of its seed. Bold filled objects on six grounds, few
ingredients on purpose, so that a UNet of a few million weights can learn all of them on two CPU cores.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

PICTURE_SIZE = 64
SUPERSAMPLING = 4
TRIGGER_WORD = "zorblat"  # three CLIP tokens, in no caption of the base training

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 36),
    "orange": (247, 132, 20),
    "yellow": (252, 214, 28),
    "green": (16, 124, 52),
    "blue": (34, 74, 214),
    "purple": (128, 44, 168),
    "pink": (248, 124, 176),
    "white": (250, 250, 250),
}
INK = (24, 22, 30)
BROWN = (112, 68, 36)
CREAM = (246, 228, 190)
PALE = (190, 224, 244)
GLOW = (255, 238, 140)
STEEL = (150, 160, 176)
LEAF = (60, 150, 50)
SKY = (150, 208, 246)


@dataclass(frozen=True)
class Brush:
    """Draws in units of the object: its centre is (0, 0), its edges lie at ±1, y points down."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    angle: float = 0.0

    def place(self, x: float, y: float) -> tuple[float, float]:
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return self.x + self.radius * (x * cosine - y * sine), self.y + self.radius * (x * sine + y * cosine)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        self.draw.polygon([self.place(x, y) for x, y in points], fill=colour)

    def ellipse(
        self, x: float, y: float, width: float, height: float, colour: Colour, part: tuple[int, int] = (0, 360)
    ) -> None:
        """Filled ellipse around (x, y); `width` and `height` are half axes, `part` is the arc drawn, in degrees."""
        start, end = math.radians(part[0]), math.radians(part[1])
        turns = [start + (end - start) * step / 48 for step in range(49)]
        self.polygon([(x + width * math.cos(turn), y + height * math.sin(turn)) for turn in turns], colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def circle(brush: Brush, colour: Colour) -> None:
    brush.ellipse(0, 0, 0.95, 0.95, colour)


def square(brush: Brush, colour: Colour) -> None:
    brush.box(-0.85, -0.85, 0.85, 0.85, colour)


def triangle(brush: Brush, colour: Colour) -> None:
    brush.polygon([(0, -0.95), (1.0, 0.85), (-1.0, 0.85)], colour)


def star(brush: Brush, colour: Colour) -> None:
    turns = [math.pi * step / 5 - math.pi / 2 for step in range(10)]
    radii = [1.08 if step % 2 == 0 else 0.45 for step in range(10)]
    points = [(r * math.cos(t), r * math.sin(t) + 0.08) for t, r in zip(turns, radii, strict=True)]
    brush.polygon(points, colour)


def heart(brush: Brush, colour: Colour) -> None:
    turns = [2 * math.pi * step / 60 for step in range(60)]
    x = [16 * math.sin(t) ** 3 / 16.5 for t in turns]
    y = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16.5 - 0.1 for t in turns]
    brush.polygon(list(zip(x, y, strict=True)), colour)


def face(brush: Brush, colour: Colour) -> None:
    brush.ellipse(0, 0, 0.98, 0.98, colour)
    for side in (-1, 1):
        brush.ellipse(0.36 * side, -0.28, 0.15, 0.22, INK)
    brush.ellipse(0, 0.22, 0.56, 0.48, INK, (0, 180))


def cat(brush: Brush, colour: Colour) -> None:
    for side in (-1, 1):
        brush.polygon([(0.95 * side, -1.05), (0.88 * side, 0.1), (0.15 * side, -0.5)], colour)
    brush.ellipse(0, 0.15, 0.95, 0.78, colour)
    for side in (-1, 1):
        brush.ellipse(0.4 * side, 0.0, 0.2, 0.22, GLOW)
        brush.ellipse(0.4 * side, 0.0, 0.08, 0.2, INK)
        brush.polygon([(0.3 * side, 0.42), (1.15 * side, 0.26), (1.15 * side, 0.36)], INK)
        brush.polygon([(0.3 * side, 0.5), (1.15 * side, 0.6), (1.15 * side, 0.7)], INK)
    brush.polygon([(-0.16, 0.3), (0.16, 0.3), (0, 0.5)], INK)


def fish(brush: Brush, colour: Colour) -> None:
    brush.polygon([(0.35, 0), (1.1, -0.62), (1.1, 0.62)], colour)
    brush.polygon([(-0.45, -0.4), (0.3, -0.85), (0.4, -0.2)], colour)
    brush.ellipse(-0.25, 0, 0.85, 0.56, colour)
    brush.ellipse(-0.66, -0.12, 0.17, 0.17, (255, 255, 255))
    brush.ellipse(-0.69, -0.12, 0.09, 0.09, INK)


def house(brush: Brush, colour: Colour) -> None:
    brush.box(-0.75, -0.1, 0.75, 0.95, colour)
    brush.polygon([(0, -1.0), (1.05, -0.05), (-1.05, -0.05)], BROWN)
    brush.box(-0.5, 0.3, -0.08, 0.95, INK)
    brush.box(0.15, 0.2, 0.55, 0.58, GLOW)


def car(brush: Brush, colour: Colour) -> None:
    brush.polygon([(-0.7, 0.05), (-0.45, -0.58), (0.35, -0.58), (0.65, 0.05)], colour)
    brush.polygon([(-0.48, -0.02), (-0.33, -0.4), (-0.06, -0.4), (-0.06, -0.02)], PALE)
    brush.polygon([(0.08, -0.02), (0.08, -0.4), (0.28, -0.4), (0.46, -0.02)], PALE)
    brush.box(-1.1, -0.02, 1.1, 0.45, colour)
    for side in (-1, 1):
        brush.ellipse(0.58 * side, 0.48, 0.29, 0.29, INK)
        brush.ellipse(0.58 * side, 0.48, 0.11, 0.11, STEEL)


def tree(brush: Brush, colour: Colour) -> None:
    brush.box(-0.16, 0.2, 0.16, 1.0, BROWN)
    brush.ellipse(-0.42, 0.0, 0.5, 0.42, colour)
    brush.ellipse(0.42, 0.0, 0.5, 0.42, colour)
    brush.ellipse(0, -0.45, 0.58, 0.55, colour)


def boat(brush: Brush, colour: Colour) -> None:
    brush.box(-0.06, -1.0, 0.06, 0.4, BROWN)
    brush.polygon([(0.1, -0.95), (0.85, 0.25), (0.1, 0.25)], CREAM)
    brush.polygon([(-0.1, -0.7), (-0.7, 0.25), (-0.1, 0.25)], CREAM)
    brush.polygon([(-1.05, 0.38), (1.05, 0.38), (0.7, 0.9), (-0.7, 0.9)], colour)


def flower(brush: Brush, colour: Colour) -> None:
    brush.box(-0.08, 0.1, 0.08, 1.05, LEAF)
    brush.ellipse(0.34, 0.72, 0.3, 0.13, LEAF)
    for step in range(5):
        turn = 2 * math.pi * step / 5 - math.pi / 2
        brush.ellipse(0.42 * math.cos(turn), -0.35 + 0.42 * math.sin(turn), 0.31, 0.31, colour)
    brush.ellipse(0, -0.35, 0.25, 0.25, INK)


def mushroom(brush: Brush, colour: Colour) -> None:
    brush.box(-0.3, -0.05, 0.3, 0.8, CREAM)
    brush.ellipse(0, 0.8, 0.38, 0.16, CREAM)
    brush.ellipse(0, 0.08, 1.02, 0.98, colour, (180, 360))
    spot = CREAM if colour != COLOURS["white"] else COLOURS["red"]
    brush.ellipse(-0.5, -0.3, 0.18, 0.18, spot)
    brush.ellipse(0.06, -0.6, 0.18, 0.18, spot)
    brush.ellipse(0.5, -0.22, 0.18, 0.18, spot)


OBJECTS: dict[str, Callable[[Brush, Colour], None]] = {
    "circle": circle, "square": square, "triangle": triangle, "star": star, "heart": heart, "face": face, "cat": cat,
    "fish": fish, "house": house, "car": car, "tree": tree, "boat": boat, "flower": flower, "mushroom": mushroom,
}  # fmt: skip
PLURALS = {"fish": "fish"}


def canvas(colour: Colour, size: int) -> tuple[Image.Image, Brush]:
    """An empty picture and a brush whose unit square is the whole picture, from (-1, -1) to (1, 1)."""
    image = Image.new("RGB", (size, size), colour)
    return image, Brush(ImageDraw.Draw(image), size / 2, size / 2, size / 2)


def grass(size: int) -> Image.Image:
    image, brush = canvas(SKY, size)
    brush.ellipse(-0.5, -0.72, 0.28, 0.12, (255, 255, 255))
    brush.box(-1, 0.1, 1, 1, (132, 200, 84))
    return image


def beach(size: int) -> Image.Image:
    image, brush = canvas(SKY, size)
    brush.ellipse(0.7, -0.7, 0.2, 0.2, (255, 226, 90))
    brush.box(-1, 0.0, 1, 0.2, (66, 160, 214))
    brush.box(-1, 0.2, 1, 1, (238, 214, 150))
    return image


def sea(size: int) -> Image.Image:
    image, brush = canvas((206, 234, 250), size)
    brush.box(-1, -0.45, 1, 1, (52, 156, 206))
    brush.box(-1, 0.62, 1, 1, (32, 112, 168))
    return image


def night(size: int) -> Image.Image:
    image, brush = canvas((20, 24, 70), size)
    brush.ellipse(-0.68, -0.66, 0.2, 0.2, (246, 240, 200))
    brush.ellipse(-0.58, -0.72, 0.17, 0.17, (20, 24, 70))
    for x, y in ((0.1, -0.8), (0.75, -0.7), (0.82, 0.1), (-0.82, 0.2), (0.6, 0.8), (-0.5, 0.82)):
        brush.ellipse(x, y, 0.045, 0.045, (246, 240, 200))
    return image


def white(size: int) -> Image.Image:
    return Image.new("RGB", (size, size), (255, 255, 255))


def black(size: int) -> Image.Image:
    return Image.new("RGB", (size, size), (14, 14, 16))


GROUNDS: dict[str, Callable[[int], Image.Image]] = {
    "on grass": grass,
    "on a beach": beach,
    "in the sea": sea,
    "in the night sky": night,
    "on a white background": white,
    "on a black background": black,
}
SIZES = {"": (0.52, 0.60), "small": (0.32, 0.36), "big": (0.72, 0.80)}  # radius, as a share of half the picture
PLACES = {"": (0.0, 0.0), "on the left": (-0.42, 0.0), "on the right": (0.42, 0.0)}
SPREADS = {2: ((-0.48, 0.05), (0.48, 0.05)), 3: ((-0.62, 0.05), (0.0, 0.05), (0.62, 0.05))}
NUMBERS = {1: "a", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Scene:
    """What one picture shows. Its caption names everything that was drawn, and nothing else."""

    subject: str
    colour: str
    ground: str
    count: int = 1
    size: str = ""
    place: str = ""

    def caption(self, tags: bool = False) -> str:
        noun = self.subject if self.count == 1 else PLURALS.get(self.subject, f"{self.subject}s")
        article = "an" if self.count == 1 and not self.size and self.colour.startswith("o") else NUMBERS[self.count]
        if tags:
            number = "" if self.count == 1 else NUMBERS[self.count]
            ground = self.ground.split(" ", 1)[1].removeprefix("a ").removeprefix("the ")
            named = " ".join(part for part in (number, self.size, self.colour, noun) if part)
            return ", ".join(part for part in (named, self.place.removeprefix("on the "), ground) if part)
        return " ".join(part for part in (article, self.size, self.colour, noun, self.place, self.ground) if part)


def random_scene(rng: random.Random) -> Scene:
    ground = rng.choice(list(GROUNDS))
    colour = rng.choice([name for name in COLOURS if not (name == "white" and "white" in ground)])
    count = rng.choices((1, 2, 3), (82, 11, 7))[0]
    size = rng.choices(("", "small", "big"), (64, 14, 22))[0] if count == 1 else ""
    place = rng.choices(("", "on the left", "on the right"), (80, 10, 10))[0] if count == 1 and size != "big" else ""
    return Scene(rng.choice(list(OBJECTS)), colour, ground, count, size, place)


def draw_scene(scene: Scene, rng: random.Random, picture_size: int = PICTURE_SIZE) -> Image.Image:
    """The scene as an RGB picture, with a little chance in size and place."""
    size = picture_size * SUPERSAMPLING
    image = GROUNDS[scene.ground](size)
    brush = ImageDraw.Draw(image)
    spots = SPREADS.get(scene.count, (PLACES[scene.place],))
    low, high = SIZES[scene.size] if scene.count == 1 else {2: (0.40, 0.44), 3: (0.27, 0.30)}[scene.count]
    for x, y in spots:
        radius = rng.uniform(low, high)
        x, y = x + rng.uniform(-0.07, 0.07), y + 0.08 + rng.uniform(-0.07, 0.07)
        spot = Brush(brush, size / 2 * (1 + x), size / 2 * (1 + y), size / 2 * radius)
        OBJECTS[scene.subject](spot, COLOURS[scene.colour])
    return image.reduce(SUPERSAMPLING)


def captioned_scene(seed: int, picture_size: int = PICTURE_SIZE) -> tuple[Image.Image, str]:
    """Picture and caption of one seed."""
    rng = random.Random(seed)
    scene = random_scene(rng)
    return draw_scene(scene, rng, picture_size), scene.caption(tags=rng.random() < 0.25)


def clutter(seed: int, picture_size: int = PICTURE_SIZE) -> Image.Image:
    """Random overlapping shapes in any colour: the VAE learns from them to encode what no scene contains."""
    rng = random.Random(f"clutter {seed}")
    size = picture_size * SUPERSAMPLING

    def any_colour() -> Colour:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    on_ground = rng.random() < 0.5
    image = rng.choice(list(GROUNDS.values()))(size) if on_ground else Image.new("RGB", (size, size), any_colour())
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(2, 9)):
        radius = size / 2 * 10 ** rng.uniform(-1.2, -0.2)
        brush = Brush(draw, rng.uniform(0, size), rng.uniform(0, size), radius, rng.uniform(0, math.tau))
        kind, colour = rng.randrange(3), any_colour()
        if kind == 0:
            brush.ellipse(0, 0, 1, rng.uniform(0.3, 1), colour)
        elif kind == 1:
            brush.box(-1, -rng.uniform(0.2, 1), 1, rng.uniform(0.2, 1), colour)
        else:
            brush.polygon([(rng.uniform(-1, 1), rng.uniform(-1, 1)) for _ in range(3)], colour)
    return image.reduce(SUPERSAMPLING)


POSES = ("standing", "arms up", "leaning left", "leaning right", "jumping")
TEAL, PLUM, GOLD = (0, 168, 160), (92, 30, 104), (250, 176, 32)


def creature(brush: Brush, pose: str) -> None:
    """The one-eyed, two-horned creature of the demo."""
    lift = 0.95 if pose in ("arms up", "jumping") else 0.0
    feet = 0.16 if pose == "jumping" else 0.0
    for side in (-1, 1):
        brush.polygon([(0.26 * side, -0.66), (0.62 * side, -0.52), (0.7 * side, -1.15)], GOLD)
        brush.ellipse((0.36 + feet) * side, 0.9, 0.28, 0.16, PLUM)
        brush.polygon(
            [(0.5 * side, -0.05), (0.5 * side, 0.3), (1.06 * side, 0.5 - lift), (0.98 * side, 0.22 - lift)], TEAL
        )
        brush.ellipse(1.0 * side, 0.38 - lift, 0.17, 0.17, PLUM)
    brush.ellipse(0, 0.05, 0.72, 0.88, TEAL)
    brush.ellipse(0, 0.45, 0.44, 0.38, GOLD)
    brush.ellipse(0, -0.28, 0.38, 0.38, (255, 255, 255))
    brush.ellipse(0, -0.26, 0.19, 0.19, INK)


def captioned_creature(seed: int, picture_size: int = PICTURE_SIZE) -> tuple[Image.Image, str]:
    """A picture of the creature and its caption; poses and grounds take turns with the seed."""
    rng = random.Random(f"creature {seed}")
    pose = POSES[seed % len(POSES)]
    ground = list(GROUNDS)[seed % len(GROUNDS)]
    words, (low, high) = (("big ", (0.72, 0.78)), ("", (0.54, 0.62)))[seed % 4 != 0]
    size = picture_size * SUPERSAMPLING
    image = GROUNDS[ground](size)
    angle = {"leaning left": -0.3, "leaning right": 0.3}.get(pose, 0.0)
    x, y = rng.uniform(-0.1, 0.1), rng.uniform(-0.04, 0.08) - (0.14 if pose == "jumping" else 0)
    half = size / 2
    creature(Brush(ImageDraw.Draw(image), half * (1 + x), half * (1 + y), half * rng.uniform(low, high), angle), pose)
    return image.reduce(SUPERSAMPLING), f"a {words}{TRIGGER_WORD} {pose} {ground}"
