"""What is far behind a head: painted pictures of rooms, streets, gardens, studios and nights.

A backdrop covers the directions that cameras in front of a face can see past it, `SPAN_DEG` wide and high about the
world's -z, at equal steps of azimuth and elevation. So it turns with the camera as a far background does. It is painted
as it is to be seen: sRGB, 8 bit.
"""

import cv2
import numpy as np

SPAN_DEG = (150.0, 64.0)
WIDTH, HEIGHT = 900, 384  # 6 px a degree
HORIZON = HEIGHT // 2
SCENES = {"room": 0.30, "shelves": 0.08, "street": 0.16, "garden": 0.17, "studio": 0.19, "night": 0.10}

Color = tuple[int, int, int]


def paint(rng: np.random.Generator, scene: str) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8, the zenith in the first row; out of focus to some extent."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    PAINTERS[scene](rng, image)
    if scene != "studio":
        grain = cv2.cvtColor(_texture(rng, (12, 100, 300), (0.05, 0.04, 0.05)), cv2.COLOR_GRAY2BGR)
        image = cv2.multiply(image, grain, dtype=cv2.CV_8U)
    focus = float(np.exp(rng.uniform(np.log(0.9), np.log(6.0))))  # px of the backdrop
    return cv2.GaussianBlur(image, (0, 0), focus if scene != "studio" else 4.0)


def _texture(rng: np.random.Generator, columns: tuple[int, ...], strengths: tuple[float, ...]) -> np.ndarray:
    """(HEIGHT, WIDTH) about 1: noise of several sizes."""
    total = np.zeros((1, 1), np.float32)
    for count, strength in zip(columns, strengths, strict=True):  # from coarse to fine
        rows = count * HEIGHT // WIDTH + 1
        noise = rng.standard_normal((rows, count), dtype=np.float32)
        total = cv2.resize(total, (count, rows), interpolation=cv2.INTER_CUBIC) + strength * noise
    return np.maximum(1 + cv2.resize(total, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), 0)


def _color(rng: np.random.Generator, low: float, high: float, chroma: float = 0.12, warmth: float = 0.0) -> Color:
    """A color of random brightness (0 to 1) that is a little to strongly tinted."""
    gray = rng.uniform(low, high)
    tint = 1 + chroma * rng.normal(size=3) + warmth * np.array([1, 0.1, -1])
    return _rgb(255 * gray * tint)


def _shaded(color: Color, factor: float) -> Color:
    return _rgb(np.array(color) * factor)


def _rgb(values: np.ndarray) -> Color:
    red, green, blue = np.clip(values, 0, 250).astype(int).tolist()
    return red, green, blue


def _gradient(image: np.ndarray, top: Color, bottom: Color, rows: slice) -> None:
    share = np.linspace(0, 1, rows.stop - rows.start)[:, None, None]
    image[rows] = np.array(top) * (1 - share) + np.array(bottom) * share


def _box(image: np.ndarray, x: float, y: float, width: float, height: float, color: Color) -> None:
    """Fill a box that goes down from y."""
    cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), color, -1)


def _paint_room(rng: np.random.Generator, image: np.ndarray) -> None:
    """Walls that meet in corners, windows or lamps, pictures, doors and furniture."""
    wall = _color(rng, 0.35, 0.85, 0.06, rng.normal(0.04, 0.05))
    floor_row, ceiling_row = HORIZON + int(rng.uniform(70, 150)), HORIZON - int(rng.uniform(100, 220))
    start = 0
    while start < WIDTH:  # walls of different light
        end = start + int(rng.uniform(150, 500))
        _gradient(
            image[:, start:end],
            _shaded(wall, rng.uniform(0.65, 1.15)),
            _shaded(wall, rng.uniform(0.55, 1.0)),
            slice(0, HEIGHT),
        )
        start = end
    image[floor_row:] = _color(rng, 0.15, 0.5, 0.1, 0.08)
    image[:ceiling_row] = _shaded(wall, 1.1)
    palette = [_color(rng, 0.06, 0.75, 0.16, 0.04) for _ in range(6)]
    for _ in range(rng.integers(4, 10)):  # windows and pictures
        x, width, height = rng.uniform(-50, WIDTH), rng.uniform(30, 130), rng.uniform(30, 120)
        y = HORIZON - rng.uniform(0.4, 1.1) * height
        bright = rng.random() < 0.3
        _box(image, x - 5, y - 5, width + 10, height + 10, _shaded(wall, rng.choice([0.5, 1.2])))
        pane = _color(rng, 0.75, 0.93, 0.04) if bright else palette[rng.integers(6)]
        _box(image, x, y, width, height, pane)
        if bright:
            for bar in np.linspace(x, x + width, rng.integers(2, 4))[:-1]:
                _box(image, bar, y, 4, height, _shaded(wall, 0.7))
    for _ in range(rng.integers(6, 18)):  # furniture, doors, plants
        width, height = rng.gamma(3, 22), rng.gamma(3, 28)
        _box(image, rng.uniform(-50, WIDTH), floor_row + 20 - height, width, height, palette[rng.integers(6)])
    for _ in range(rng.integers(0, 5)):
        lamp = (int(rng.uniform(0, WIDTH)), HORIZON - int(rng.uniform(10, 120)))
        cv2.ellipse(image, lamp, (int(rng.uniform(6, 18)), int(rng.uniform(6, 16))), 0, 0, 360, (250, 238, 205), -1)


def _paint_shelves(rng: np.random.Generator, image: np.ndarray) -> None:
    """Rows of books or goods."""
    wood = _color(rng, 0.12, 0.6, 0.06, 0.10)
    palette = [_color(rng, 0.08, 0.8, 0.16, 0.04) for _ in range(14)]
    image[:] = _shaded(wood, 0.5)
    height = int(rng.uniform(38, 75))
    for bottom in range(int(rng.uniform(0, height)), HEIGHT + height, height):
        x = 0.0
        while x < WIDTH:
            width, tall = rng.uniform(4, 14), rng.uniform(0.55, 0.92) * height
            if rng.random() < 0.88:
                _box(image, x, bottom - tall, width, tall, palette[rng.integers(14)])
            x += width + 1
        _box(image, 0, bottom, WIDTH, 5, wood)
    for x in np.arange(rng.uniform(0, 200), WIDTH, rng.uniform(150, 300)):
        _box(image, x, 0, 8, HEIGHT, _shaded(wood, 1.15))


def _sky(rng: np.random.Generator, image: np.ndarray) -> None:
    level, warmth = rng.uniform(0.55, 0.9), rng.uniform(-0.1, 0.2)
    zenith = _rgb(255 * level * np.array([0.62 + warmth, 0.78, 0.97]))
    horizon = _color(rng, 0.65, 0.92, 0.02, warmth * 0.6)
    _gradient(image, zenith, horizon, slice(0, HORIZON + 40))
    image[HORIZON + 40 :] = _color(rng, 0.2, 0.5, 0.06)
    clouds = np.clip(_texture(rng, (8, 24, 60), (0.6, 0.4, 0.2)) - 1.1, 0, 1)[:HORIZON, :, None] * rng.uniform(0, 0.9)
    image[:HORIZON] = image[:HORIZON] * (1 - clouds) + 238 * clouds


def _trees(rng: np.random.Generator, image: np.ndarray, count: int, green: np.ndarray) -> None:
    """Crowns made of leaves lit from above, on trunks."""
    for _ in range(count):
        x, radius = rng.uniform(0, WIDTH), rng.uniform(25, 95)
        y, shade = HORIZON - rng.uniform(0.1, 1.6) * radius, rng.uniform(0.5, 1.2)
        _box(image, x - radius * 0.07, y, radius * 0.14, HORIZON + 40 - y, (52, 42, 36))
        for _ in range(24):
            place = rng.normal(0, 0.45 * radius, 2)
            light = shade * (0.8 - 0.5 * place[1] / radius) * rng.uniform(0.7, 1.25)
            leaf = tuple(int(value) for value in np.clip(green * light, 0, 235))
            cv2.circle(image, (int(x + place[0]), int(y + place[1])), int(radius * rng.uniform(0.1, 0.34)), leaf, -1)


def _paint_street(rng: np.random.Generator, image: np.ndarray) -> None:
    """Houses with rows of windows below a sky, some trees, cars and people far away."""
    _sky(rng, image)
    x = -30.0
    while x < WIDTH:
        width, height = rng.uniform(60, 190), rng.uniform(40, 300)
        top, front = HORIZON + 40 - height, _color(rng, 0.2, 0.75, 0.09, 0.06)
        _box(image, x, top, width, height, front)
        pitch, pane = rng.uniform(14, 30), _shaded(front, rng.choice([0.45, 0.6, 1.25]))
        for row in np.arange(top + 8, HORIZON + 20, pitch * 1.3):
            for column in np.arange(x + 6, x + width - 0.5 * pitch, pitch):
                _box(image, column, row, 0.5 * pitch, 0.75 * pitch, pane)
        x += width + rng.choice([0, 0, 30]) * rng.random()
    image[HORIZON + 40 :] = _color(rng, 0.25, 0.5, 0.03)
    _trees(rng, image, int(rng.integers(0, 6)), np.array([80, 112, 58]) * rng.uniform(0.7, 1.2))
    for _ in range(rng.integers(4, 16)):
        height = rng.uniform(10, 45)
        _box(
            image,
            rng.uniform(0, WIDTH),
            HORIZON + 48 - height,
            height * rng.uniform(0.4, 2),
            height,
            _color(rng, 0.05, 0.8, 0.35),
        )


def _paint_garden(rng: np.random.Generator, image: np.ndarray) -> None:
    """Lawn, hedges and trees, near or far."""
    _sky(rng, image)
    green = np.array([88, 118, 52]) * rng.uniform(0.75, 1.25) * (1 + 0.12 * rng.normal(size=3))
    _gradient(image, tuple((green * 0.9).tolist()), tuple((green * 1.3).tolist()), slice(HORIZON + 30, HEIGHT))
    _trees(rng, image, int(rng.integers(10, 34)), green)
    for _ in range(rng.integers(0, 60)):  # flowers
        place = (int(rng.uniform(0, WIDTH)), int(HORIZON + rng.uniform(10, 150)))
        cv2.circle(image, place, int(rng.uniform(2, 6)), _color(rng, 0.6, 0.95, 0.4), -1)


def _paint_studio(rng: np.random.Generator, image: np.ndarray) -> None:
    """A cloth or paper in one color, lit in the middle, at times mottled."""
    color = np.array(_color(rng, 0.06, 0.85, 0.13), np.float32)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    center = rng.uniform((0.35, 0.3), (0.65, 0.7)) * (WIDTH, HEIGHT)
    glow = np.exp(-((x - center[0]) ** 2 / 450**2 + (y - center[1]) ** 2 / 260**2))
    cloth = 1 + rng.choice([0.0, 0.6, 1.0]) * (_texture(rng, (12, 36), (0.09, 0.05)) - 1)
    image[:] = np.clip(color * (cloth * (rng.uniform(0.45, 0.9) + 0.45 * glow))[..., None], 0, 248)


def _paint_night(rng: np.random.Generator, image: np.ndarray) -> None:
    """A dark street with lights out of focus."""
    _gradient(image, _color(rng, 0.01, 0.08, 0.3), _color(rng, 0.05, 0.16, 0.2, 0.1), slice(0, HEIGHT))
    for _ in range(rng.integers(8, 30)):
        width, height = rng.uniform(30, 120), rng.uniform(40, 220)
        _box(image, rng.uniform(-50, WIDTH), HORIZON + 40 - height, width, height, _color(rng, 0.03, 0.18, 0.2))
    lamps = [(250, 205, 130), (250, 170, 80), (235, 240, 250), (240, 90, 70), (90, 160, 240), (120, 220, 140)]
    radius = rng.uniform(3, 13)
    for _ in range(rng.integers(30, 110)):
        place = (int(rng.uniform(0, WIDTH)), int(rng.normal(HORIZON, 70)))
        lamp = _shaded(lamps[rng.choice(6, p=(0.34, 0.24, 0.2, 0.1, 0.08, 0.04))], rng.uniform(0.35, 1.0))
        cv2.circle(image, place, int(radius * rng.uniform(0.8, 1.2)), lamp, -1)


PAINTERS = {
    "room": _paint_room,
    "shelves": _paint_shelves,
    "street": _paint_street,
    "garden": _paint_garden,
    "studio": _paint_studio,
    "night": _paint_night,
}
