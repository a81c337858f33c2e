"""One table of what each metric measures and how to read it; torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What one number says."""

    unit: str
    higher_is_better: bool | None  # None: neither, it only says where to look
    meaning: str  # one line
    paper: str = ""


_CLIP = "Radford et al. 2021, arXiv 2103.00020"
_DREAMBOOTH = "Ruiz et al. 2022, arXiv 2208.12242"

METRICS: Mapping[str, Meaning] = {
    "flat": Meaning(
        unit="0 or 1",
        higher_is_better=False,
        meaning="1: black or of one colour, nothing was drawn",
    ),
    "clipped": Meaning(
        unit="share of values",
        higher_is_better=False,
        meaning="channel values within 2 of black or white: much above the base's is burnt",
    ),
    "saturation": Meaning(
        unit="0 to 1",
        higher_is_better=None,
        meaning="mean saturation; far from the base's at the same seed is burnt or faded",
    ),
    "local_contrast": Meaning(
        unit="0 to 1",
        higher_is_better=None,
        meaning="mean spread of luma within squares of 8 pixels: much above the base's is noise",
    ),
    "change_from_base": Meaning(
        unit="0 to 1",
        higher_is_better=None,
        meaning="mean absolute difference from the base's image of the same seed",
    ),
    "ssim_with_base": Meaning(
        unit="-1 to 1",
        higher_is_better=None,
        meaning="how much of the base's structure is left at the same seed",
        paper="Wang et al. 2004, Image quality assessment (SSIM)",
    ),
    "change_from_previous": Meaning(
        unit="0 to 1",
        higher_is_better=None,
        meaning="mean absolute difference from the epoch before: near 0, nothing more happens",
    ),
    "copy_distance": Meaning(
        unit="share of 64 bits",
        higher_is_better=True,
        meaning="perceptual hash against the nearest training image: below 0.16 a near-copy",
    ),
    "identical_seeds": Meaning(
        unit="share of other seeds",
        higher_is_better=False,
        meaning="other seeds of the prompt that gave the same image",
    ),
    "diversity": Meaning(
        unit="0 to 1",
        higher_is_better=None,
        meaning="mean absolute difference from the prompt's other seeds, images made small",
    ),
    "resemblance": Meaning(
        unit="cosine",
        higher_is_better=True,
        meaning="nearness to the training images; does not notice broken images",
        paper=_DREAMBOOTH,
    ),
    "outfit_obedience": Meaning(
        unit="probability",
        higher_is_better=True,
        meaning="that the outfit the prompt asks for is worn",
    ),
    "color_obedience": Meaning(
        unit="probability",
        higher_is_better=True,
        meaning="that the outfit has the colour the prompt asks for",
    ),
    "background_obedience": Meaning(
        unit="probability",
        higher_is_better=True,
        meaning="that the background is the one the prompt asks for",
    ),
    "outfit_leak": Meaning(
        unit="probability",
        higher_is_better=False,
        meaning="that a trained outfit is worn although the prompt asks for another one",
    ),
    "resistance": Meaning(
        unit="-1 to 1",
        higher_is_better=True,
        meaning="obedience minus leak: the asked outfit against the trained ones",
    ),
    "clip_text": Meaning(
        unit="cosine",
        higher_is_better=True,
        meaning="the image and its own prompt (CLIP-T); compare with the base's only",
        paper=_CLIP,
    ),
    "clip_image": Meaning(
        unit="cosine",
        higher_is_better=True,
        meaning="mean over the training images (CLIP-I); rewards shape and palette",
        paper=_DREAMBOOTH,
    ),
    "clip_nearest": Meaning(
        unit="cosine",
        higher_is_better=None,
        meaning="the nearest training image, which is named: near 1 a copy",
        paper=_CLIP,
    ),
    "dino_image": Meaning(
        unit="cosine",
        higher_is_better=True,
        meaning="mean over the training images; notices more of the subject than CLIP",
        paper="Caron et al. 2021, arXiv 2104.14294; " + _DREAMBOOTH,
    ),
    "dino_nearest": Meaning(
        unit="cosine",
        higher_is_better=None,
        meaning="the nearest training image, which is named: near 1 a copy",
        paper="Caron et al. 2021, arXiv 2104.14294",
    ),
    "lpips_from_base": Meaning(
        unit="0 and up",
        higher_is_better=None,
        meaning="perceptual distance from the base's image of the same seed",
        paper="Zhang et al. 2018, arXiv 1801.03924",
    ),
}


def ours(*names: str) -> dict[str, Meaning]:
    """Return the meanings of some of our metrics by their name."""
    return {name: METRICS[name] for name in names}
