"""What is worn besides the outfit: wings, capes, scarfs, glasses and headwear, and their tags."""

from __future__ import annotations

from tools.tinybase.body import SIDES, Figure
from tools.tinybase.brush import Color, arc, curve, ellipse, paint_flower, polygon, polyline
from tools.tinybase.character import CLOTH_COLORS, Accessories

_GLASSES_COLOR: Color = (50, 46, 60)


def name_accessories(accessories: Accessories) -> list[str]:
    """Return the tags of everything that is worn besides the outfit."""
    tags = []
    headwear, color = accessories.headwear, accessories.headwear_color
    if headwear in ("witch hat", "beret", "ribbon"):
        tags.append(f"{color} {headwear}")
    elif headwear:
        # A straw hat has the colour of straw whatever its band; ears have the hair's.
        tags.append(headwear)
    if accessories.back:
        tags.append(f"{accessories.back_color} {accessories.back}")
    if accessories.has_glasses:
        tags.append("glasses")
    if accessories.scarf_color:
        tags.append(f"{accessories.scarf_color} scarf")
    return tags


def paint_behind(figure: Figure) -> None:
    """Paint wings or a cape; call it before everything else."""
    accessories = figure.character.accessories
    if accessories.back == "wings":
        for side in SIDES:
            wing = curve(
                (side * 0.2, 1.15),
                [
                    (side * 0.9, 0.35, side * 1.75, 0.2),
                    (side * 1.72, 0.8, side * 1.5, 1.0),
                    (side * 1.5, 1.25, side * 1.22, 1.38),
                    (side * 1.1, 1.6, side * 0.85, 1.6),
                    (side * 0.5, 1.6, side * 0.2, 1.45),
                ],
            )
            figure.brush.fill(wing, CLOTH_COLORS[accessories.back_color])
    elif accessories.back == "cape":
        cape = curve(
            (-0.36, 0.95),
            [(-1.0, 1.7, -0.85, 2.45), (0, 2.62, 0.85, 2.45), (1.0, 1.7, 0.36, 0.95)],
        )
        figure.brush.fill(cape, CLOTH_COLORS[accessories.back_color])


def paint_scarf(figure: Figure) -> None:
    """Paint the scarf, if there is one; call it between the outfit and the head."""
    name = figure.character.accessories.scarf_color
    if name:
        color = CLOTH_COLORS[name]
        figure.brush.limb([(-0.3, 0.9), (0, 0.98), (0.3, 0.9)], color, 0.2)
        figure.brush.limb([(0.22, 1.0), (0.3, 1.45)], color, 0.18)


def paint_glasses(figure: Figure) -> None:
    """Paint the glasses, if there are any; call it between the face and the front hair."""
    if not figure.character.accessories.has_glasses:
        return
    for side in SIDES:
        figure.brush.stroke(ellipse((side * 0.4, 0.15), (0.27, 0.29)), _GLASSES_COLOR, 0.05)
    figure.brush.stroke(polyline([(-0.13, 0.12), (0.13, 0.12)]), _GLASSES_COLOR, 0.05)


def paint_headwear(figure: Figure) -> None:
    """Paint hat, ribbon, ears or flower, if there is one; call it after the front hair."""
    accessories = figure.character.accessories
    if accessories.headwear == "cat ears":
        _paint_cat_ears(figure)
    elif accessories.headwear:
        color = CLOTH_COLORS[accessories.headwear_color]
        if accessories.headwear == "witch hat":
            _paint_witch_hat(figure, color)
        elif accessories.headwear == "straw hat":
            _paint_straw_hat(figure, color)
        elif accessories.headwear == "beret":
            figure.brush.oval((-0.1, -0.92), (0.85, 0.36), color)
        elif accessories.headwear == "ribbon":
            _paint_ribbon(figure, color)
        else:
            paint_flower(figure.brush, (-0.68, -0.62), 0.26, color)


def _paint_cat_ears(figure: Figure) -> None:
    for side in SIDES:
        ear = polygon([(side * 0.28, -0.98), (side * 0.72, -1.5), (side * 0.9, -0.66)])
        figure.brush.fill(ear, figure.hair)
        inside = polygon([(side * 0.42, -0.98), (side * 0.69, -1.3), (side * 0.79, -0.8)])
        figure.brush.fill(inside, (250, 170, 180), outlined=False)


def _paint_ribbon(figure: Figure, color: Color) -> None:
    x, y = 0.55, -0.92
    for side in SIDES:
        loop = polygon([(x, y), (x + side * 0.4, y - 0.24), (x + side * 0.4, y + 0.24)])
        figure.brush.fill(loop, color)
    figure.brush.disc((x, y), 0.1, color)


def _paint_witch_hat(figure: Figure, color: Color) -> None:
    figure.brush.oval((0, -0.72), (1.2, 0.24), color)
    cone = curve(
        (-0.62, -0.78),
        [(-0.3, -1.5, 0.25, -1.95), (0.3, -1.4, 0.62, -0.78), (0, -0.6, -0.62, -0.78)],
    )
    figure.brush.fill(cone, color)
    band = arc((-0.6, -0.86), [(0, -0.68, 0.6, -0.86)])
    figure.brush.stroke(band, (240, 190, 70), 0.12)


def _paint_straw_hat(figure: Figure, band_color: Color) -> None:
    figure.brush.oval((0, -0.66), (1.3, 0.26), (240, 208, 130))
    crown = curve(
        (-0.62, -0.7),
        [(-0.6, -1.35, 0, -1.35), (0.6, -1.35, 0.62, -0.7), (0, -0.55, -0.62, -0.7)],
    )
    figure.brush.fill(crown, (246, 216, 144))
    band = arc((-0.62, -0.8), [(0, -0.64, 0.62, -0.8)])
    figure.brush.stroke(band, band_color, 0.13)
