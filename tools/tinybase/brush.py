"""Drawing primitives: colours, shapes, and the brush that puts them on a sheet.

This is the only module that knows skia. Coordinates are floats: pixels with y pointing down on a
fresh sheet, or the units of whoever moved the brush with `Brush.moved`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import skia
from numpy.typing import NDArray

Color = tuple[float, float, float]
"""Red, green and blue from 0 to 255; values outside that range are clipped when painted."""

Point = tuple[float, float]

Segment = tuple[float, ...]
"""A piece of a curve: an end point, preceded by no, one or two control points (2, 4, 6 numbers)."""

WHITE: Final[Color] = (255, 255, 255)
_SUM_OF_A_DARK_COLOR: Final = 200


def shade(color: Color, factor: float) -> Color:
    """Return the colour darkened by a factor up to 1, or moved towards white by one above 1."""
    red, green, blue = color
    if factor <= 1:
        return red * factor, green * factor, blue * factor
    return 255 - (255 - red) / factor, 255 - (255 - green) / factor, 255 - (255 - blue) / factor


def blend(color: Color, other: Color, share: float) -> Color:
    """Return the mixture that takes `share` (0 to 1) from the other colour."""
    kept = 1 - share
    return (
        color[0] * kept + other[0] * share,
        color[1] * kept + other[1] * share,
        color[2] * kept + other[2] * share,
    )


def between(start: Point, end: Point, share: float) -> Point:
    """Return the point that lies `share` (0 to 1) of the way from start to end."""
    kept = 1 - share
    return start[0] * kept + end[0] * share, start[1] * kept + end[1] * share


def outline_color(color: Color) -> Color:
    """Return the darker colour that outlines a shape of the given colour."""
    return shade(color, 0.7 if sum(color) > _SUM_OF_A_DARK_COLOR else 0.5)


def polyline(points: Sequence[Point]) -> skia.Path:
    """Return the open path through the points."""
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    return path


def polygon(points: Sequence[Point]) -> skia.Path:
    """Return the closed path through the points."""
    path = polyline(points)
    path.close()
    return path


def arc(start: Point, segments: Sequence[Segment]) -> skia.Path:
    """Return the open path of straight, quadratic and cubic segments from the start."""
    path = skia.Path()
    path.moveTo(*start)
    for segment in segments:
        if len(segment) == 2:
            path.lineTo(*segment)
        elif len(segment) == 4:
            path.quadTo(*segment)
        else:
            path.cubicTo(*segment)
    return path


def curve(start: Point, segments: Sequence[Segment]) -> skia.Path:
    """Return the closed path of straight, quadratic and cubic segments from the start."""
    path = arc(start, segments)
    path.close()
    return path


def ellipse(center: Point, radii: Point) -> skia.Path:
    """Return the closed ellipse with the given horizontal and vertical radius."""
    x, y = center
    radius_x, radius_y = radii
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(x - radius_x, y - radius_y, x + radius_x, y + radius_y))
    return path


def star(
    center: Point, radius: float, *, num_points: int = 5, inner_share: float = 0.45
) -> skia.Path:
    """Return a star that points up; `inner_share` is the inner radius over the outer one."""
    points = []
    for index in range(2 * num_points):
        reach = radius if index % 2 == 0 else radius * inner_share
        angle = -math.pi / 2 + index * math.pi / num_points
        points.append((center[0] + reach * math.cos(angle), center[1] + reach * math.sin(angle)))
    return polygon(points)


class Brush:
    """Paints shapes on a sheet; every method paints at once, over what is already there."""

    def __init__(self, canvas: Any, *, line_width: float) -> None:
        """Keep the skia canvas and the width of the outlines, in the units of the drawing."""
        self._canvas = canvas
        self._line_width = line_width

    def fill(
        self,
        path: skia.Path,
        color: Color,
        *,
        outlined: bool = True,
        line_width: float | None = None,
    ) -> None:
        """Paint the inside of a path and, unless told otherwise, its outline."""
        self._canvas.drawPath(path, skia.Paint(Color=_pack(color), AntiAlias=True))
        if outlined:
            self.stroke(path, outline_color(color), line_width or self._line_width)

    def stroke(self, path: skia.Path, color: Color, width: float) -> None:
        """Paint the line of a path with round joins and ends."""
        paint = skia.Paint(
            Color=_pack(color),
            AntiAlias=True,
            Style=skia.Paint.kStroke_Style,
            StrokeWidth=width,
            StrokeJoin=skia.Paint.kRound_Join,
            StrokeCap=skia.Paint.kRound_Cap,
        )
        self._canvas.drawPath(path, paint)

    def limb(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Paint a thick outlined line through the points, such as an arm."""
        path = polyline(points)
        self.stroke(path, outline_color(color), width + 2 * self._line_width * 0.9)
        self.stroke(path, color, width)

    def disc(self, center: Point, radius: float, color: Color, *, outlined: bool = True) -> None:
        """Paint a filled circle."""
        self.fill(ellipse(center, (radius, radius)), color, outlined=outlined)

    def oval(self, center: Point, radii: Point, color: Color, *, outlined: bool = True) -> None:
        """Paint a filled ellipse with the given horizontal and vertical radius."""
        self.fill(ellipse(center, radii), color, outlined=outlined)

    def area(self, corner: Point, opposite: Point, color: Color) -> None:
        """Paint the rectangle between two corners, without outline and with hard edges."""
        self._canvas.drawRect(
            skia.Rect.MakeLTRB(*corner, *opposite), skia.Paint(Color=_pack(color))
        )

    def box(self, corner: Point, size: Point, color: Color) -> None:
        """Paint the rectangle of a size at its upper left corner, with hard edges."""
        # Not an `area`: skia adds the size in single precision, which can move an edge.
        self._canvas.drawRect(skia.Rect.MakeXYWH(*corner, *size), skia.Paint(Color=_pack(color)))

    def sweep_down(self, corner: Point, opposite: Point, colors: tuple[Color, Color]) -> None:
        """Paint a rectangle whose colour runs from the first (top) to the second (bottom)."""
        shader = skia.GradientShader.MakeLinear(
            points=[(0, corner[1]), (0, opposite[1])], colors=[_pack(color) for color in colors]
        )
        self._canvas.drawRect(skia.Rect.MakeLTRB(*corner, *opposite), skia.Paint(Shader=shader))

    @contextmanager
    def moved(self, origin: Point, *, scale: float, degrees: float = 0.0) -> Iterator[None]:
        """Guarantee that inside the block one unit is `scale` pixels and (0, 0) is the origin."""
        self._canvas.save()
        self._canvas.translate(*origin)
        self._canvas.scale(scale, scale)
        if degrees:
            self._canvas.rotate(degrees)
        try:
            yield
        finally:
            self._canvas.restore()

    @contextmanager
    def clipped(self, corner: Point, opposite: Point) -> Iterator[None]:
        """Guarantee that the block paints nothing outside the rectangle."""
        self._canvas.save()
        self._canvas.clipRect(skia.Rect.MakeLTRB(*corner, *opposite))
        try:
            yield
        finally:
            self._canvas.restore()


class Sheet:
    """An empty picture to paint on."""

    def __init__(self, *, width: int, height: int) -> None:
        """Make a black sheet of the given size in pixels."""
        self._surface = skia.Surface(width, height)

    def brush(self, *, line_width: float) -> Brush:
        """Return a brush for this sheet."""
        return Brush(self._surface.getCanvas(), line_width=line_width)

    def soften(self, sigma_px: float) -> None:
        """Blur everything painted so far, as a lens does with what is far behind."""
        blur = skia.ImageFilters.Blur(sigma_px, sigma_px, skia.TileMode.kClamp)
        painted = self._surface.makeImageSnapshot()
        self._surface.getCanvas().drawImage(painted, 0, 0, paint=skia.Paint(ImageFilter=blur))

    def pixels(self) -> NDArray[np.uint8]:
        """Return a copy of the picture, shape (height, width, 3), red first."""
        snapshot = self._surface.makeImageSnapshot()
        rgba: NDArray[np.uint8] = snapshot.toarray(colorType=skia.kRGB_888x_ColorType)
        return rgba[:, :, :3].copy()


def paint_flower(
    brush: Brush, center: Point, radius: float, color: Color, *, heart: Color = (250, 220, 80)
) -> None:
    """Paint a flower of five petals without outline."""
    x, y = center
    for petal_index in range(5):
        angle = petal_index * 2 * math.pi / 5 - 0.3
        petal = (x + radius * 0.62 * math.cos(angle), y + radius * 0.62 * math.sin(angle))
        brush.disc(petal, radius * 0.5, color, outlined=False)
    brush.disc(center, radius * 0.36, heart, outlined=False)


def paint_cloud(brush: Brush, center: Point, radius: float) -> None:
    """Paint a white cloud of five discs."""
    x, y = center
    puffs = (
        (-1.1, 0.15, 0.6),
        (0.0, -0.15, 0.9),
        (1.1, 0.12, 0.65),
        (0.5, 0.2, 0.7),
        (-0.5, 0.22, 0.7),
    )
    for offset_x, offset_y, size in puffs:
        puff = (x + offset_x * radius, y + offset_y * radius)
        brush.disc(puff, radius * size, WHITE, outlined=False)


def _pack(color: Color) -> int:
    """Return skia's opaque colour; fractions are cut off, not rounded."""
    red, green, blue = (int(max(0, min(255, channel))) for channel in color)
    packed: int = skia.Color(red, green, blue, 255)
    return packed
