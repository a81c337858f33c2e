"""The head without hair: skin, cheeks, eyes and mouth."""

from __future__ import annotations

from typing import Final

from tools.tinybase.body import SIDES, Figure
from tools.tinybase.brush import WHITE, Color, arc, blend, curve, polyline, shade
from tools.tinybase.character import EYE_COLORS

_EYE_X: Final = 0.4
_EYE_Y: Final = 0.14
_LIP_COLOR: Final[Color] = (150, 60, 56)


def paint_face(figure: Figure) -> None:
    """Paint the head and the expression on it."""
    brush = figure.brush
    head = curve(
        (-0.86, -0.1),
        [
            (-0.9, 0.5, -0.42, 0.76),
            (0, 0.98, 0.42, 0.76),
            (0.9, 0.5, 0.86, -0.1),
            (0.8, -0.9, 0, -0.9),
            (-0.8, -0.9, -0.86, -0.1),
        ],
    )
    brush.fill(head, figure.skin)
    cheek_color = blend(figure.skin, (255, 120, 120), 0.38)
    for side in SIDES:
        brush.oval((side * 0.56, 0.44), (0.13, 0.08), cheek_color, outlined=False)
    eye_color = EYE_COLORS[figure.character.eyes]
    eye_colors = (eye_color, figure.character.looks.right_eye or eye_color)
    for side, color in zip(SIDES, eye_colors, strict=True):
        if figure.character.expression == "closed eyes":
            _paint_closed_eye(figure, side * _EYE_X)
        else:
            _paint_open_eye(figure, side * _EYE_X, color)
    _paint_mouth(figure)


def _paint_closed_eye(figure: Figure, x: float) -> None:
    """Paint a happily closed eye."""
    lid = arc((x - 0.19, _EYE_Y + 0.1), [(x, _EYE_Y - 0.12, x + 0.19, _EYE_Y + 0.1)])
    figure.brush.stroke(lid, (60, 40, 40), 0.055)


def _paint_open_eye(figure: Figure, x: float, color: Color) -> None:
    """Paint an eye: white, iris in two tones, pupil, light and lid."""
    brush, y = figure.brush, _EYE_Y
    brush.oval((x, y), (0.2, 0.27), WHITE, outlined=False)
    brush.oval((x, y + 0.03), (0.165, 0.235), shade(color, 0.8), outlined=False)
    brush.oval((x, y + 0.1), (0.13, 0.15), shade(color, 1.35), outlined=False)
    brush.oval((x, y + 0.02), (0.075, 0.12), shade(color, 0.3), outlined=False)
    brush.disc((x - 0.06, y - 0.09), 0.06, WHITE, outlined=False)
    lid = arc((x - 0.21, y - 0.1), [(x, y - 0.38, x + 0.21, y - 0.1)])
    brush.stroke(lid, (50, 36, 44), 0.065)


def _paint_mouth(figure: Figure) -> None:
    """Paint the mouth of the expression; closed eyes come with a smile."""
    brush, expression = figure.brush, figure.character.expression
    if expression in ("smile", "closed eyes"):
        brush.stroke(arc((-0.16, 0.52), [(0, 0.68, 0.16, 0.52)]), _LIP_COLOR, 0.045)
    elif expression == "open mouth":
        mouth = curve(
            (-0.17, 0.5),
            [(0, 0.53, 0.17, 0.5), (0.14, 0.76, 0, 0.76), (-0.14, 0.76, -0.17, 0.5)],
        )
        brush.fill(mouth, (206, 76, 80), line_width=0.03)
    else:
        brush.stroke(polyline([(-0.1, 0.58), (0.1, 0.58)]), _LIP_COLOR, 0.045)
