"""What other trainers call the families of models, and which of them can be trained here."""

from __future__ import annotations

import re

# Beginnings of names without punctuation, longest first where one begins with another.
_OURS = (
    ("sd15", r"sd1x?|sd15.*|stablediffusion(v?15.*|15.*|v14.*)|.*stablediffusionv1[45].*"),
    ("sd2", r"sd2x?|sd2[01].*|stablediffusion2[01](base)?|.*stablediffusion2[01]?(base)?"),
    ("sdxl", r"sdxl(base|refiner)?|stablediffusionxl10base|.*stablediffusionxlbase10"),
)
_OTHERS = (
    (r".*inpaint.*|.*fill.*|.*depth.*", "an inpainting or depth model"),
    (r".*zimage.*", "Z-Image"),
    (r".*flux2.*", "FLUX.2"),
    (r".*kontext.*", "FLUX.1 Kontext"),
    (r".*(flux|flex).*", "FLUX.1"),
    (r".*anima.*", "Anima"),
    (r".*qwen.*", "Qwen-Image"),
    (r".*chroma.*", "Chroma"),
    (r".*krea.*", "Krea 2"),
    (r".*ideogram.*", "Ideogram 4"),
    (r".*hunyuanimage.*", "HunyuanImage"),
    (r".*hunyuan.*|hv.*", "HunyuanVideo"),
    (r".*(framepack|fpack).*", "FramePack"),
    (r".*wan.*", "Wan"),
    (r".*ltx.*", "LTX-Video"),
    (r".*hidream.*", "HiDream"),
    (r".*kandinsky.*", "Kandinsky 5"),
    (r".*(sd3|stablediffusion3).*", "Stable Diffusion 3"),
    (r".*pixart.*", "PixArt"),
    (r".*sana.*", "Sana"),
    (r".*lumina.*", "Lumina 2"),
    (r".*auraflow.*", "AuraFlow"),
    (r".*ernie.*", "Ernie Image"),
    (r".*cosmos.*", "Cosmos"),
    (r".*omnigen.*", "OmniGen 2"),
    (r".*(cascade|wuerstchen).*", "Stable Cascade"),
    (r".*(kolors).*", "Kolors"),
)


def family(name: str) -> tuple[str | None, str]:
    """Return what a model family of another trainer is here.

    Args:
        name: As that trainer writes it, or the name of its program or of a checkpoint.

    Returns:
        Our `base`, or None if it cannot be trained here; and the family in words.
    """
    short = plain(name)
    # Fine-tuning models for inpainting needs more inputs than the plain ones have.
    for ours, pattern in () if "inpaint" in short or "depth" in short else _OURS:
        if re.fullmatch(pattern, short):
            return ours, ours
    words = next((words for pattern, words in _OTHERS if re.fullmatch(pattern, short)), name)
    return None, words


def plain(name: str) -> str:
    """Return a name in small letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
