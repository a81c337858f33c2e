"""Prompts for pictures: tokens in pieces of 75, weights on states, and any length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optbench.contracts import SampleRequest
from optbench.models import sd2, sdxl
from optbench.models.stable_diffusion import StableDiffusion
from optbench.models.text import prompt_weights
from optbench.models.text.clip import ClipTextOptions, clip_tokenizer, token_pieces

CLIP = clip_tokenizer()
OPEN_CLIP = clip_tokenizer(pad_token="!")
REQUEST = SampleRequest(
    text="1girl, red dress",
    negative="blurry",
    seeds=(7, 8),
    width=32,
    height=32,
    cfg_scale=5.0,
    steps=4,
    sampler="Euler",
    text_options=ClipTextOptions(),
)
START, END, COMMA = CLIP.bos_token_id, CLIP.eos_token_id, CLIP.get_vocab()[",</w>"]
(DOG,) = CLIP("dog", add_special_tokens=False).input_ids


def tokens(*prompts: str) -> tuple[Tensor, Tensor]:
    return prompt_weights.prompt_tokens(CLIP, prompts)


def lengths(prompt: str) -> list[int]:
    """Return how many tokens of the prompt are in each piece."""
    return [int((piece != END).sum()) - 1 for piece in tokens(prompt)[0][0]]


@pytest.mark.parametrize("tokenizer", [CLIP, OPEN_CLIP], ids=["clip", "open-clip"])
@pytest.mark.parametrize("text", ["", "1girl, red dress", "dog " * 74, "dog " * 75])
def test_a_prompt_of_one_piece_has_the_tokens_of_a_caption(tokenizer: Any, text: str) -> None:
    ids, weights = prompt_weights.prompt_tokens(tokenizer, [text])
    assert torch.equal(ids, token_pieces(tokenizer, [text], max_token_length=75))
    assert ids.shape == (1, 1, 77)
    assert bool((weights == 1).all())


def test_a_long_prompt_goes_on_in_further_pieces() -> None:
    assert lengths("dog " * 76) == [75, 1]
    assert lengths("dog " * 400) == [75, 75, 75, 75, 75, 25]


def test_a_comma_near_the_end_of_a_piece_takes_what_follows_along() -> None:
    """20 tokens at most, and no comma that the piece ends with anyway."""
    assert lengths("dog " * 60 + ", " + "cat " * 30) == [61, 30]
    assert lengths("dog " * 55 + ", " + "cat " * 30) == [56, 30]
    assert lengths("dog " * 54 + ", " + "cat " * 30) == [75, 10]
    assert lengths("dog " * 74 + ", " + "cat " * 30) == [75, 30]
    assert lengths("dog " * 75 + ", " + "cat " * 30) == [75, 31]


def test_break_ends_a_piece() -> None:
    assert lengths("dog dog BREAK dog") == [2, 1]
    assert lengths("BREAK dog BREAK") == [0, 1]
    assert lengths("dog " * 75 + "BREAK dog") == [75, 1]


def test_shorter_prompts_get_empty_pieces() -> None:
    ids, weights = tokens("dog " * 80, "(dog:1.5)", "")
    assert ids.shape == weights.shape == (3, 2, 77)
    assert ids[1, 1].tolist() == ids[2, 0].tolist() == [START, *([END] * 76)]
    assert weights[1, 0, :3].tolist() == [1, 1.5, 1]


def test_weights_are_of_their_tokens() -> None:
    ids, weights = tokens("dog, (dog dog:1.5) [dog]")
    assert ids[0, 0, :7].tolist() == [START, DOG, COMMA, DOG, DOG, DOG, END]
    assert weights[0, 0, :7].tolist() == pytest.approx([1, 1, 1, 1.5, 1.5, 1 / 1.1, 1])


def test_emphasis_multiplies_and_restores_the_mean_of_the_piece() -> None:
    states = torch.randn(2, 3, 77, 5, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.ones(2, 3, 77)
    weights[0, 1, 4] = 1.5
    found = prompt_weights.emphasize(states, weights)
    expected = states[0, 1].clone()
    expected[4] *= 1.5
    expected *= states[0, 1].mean() / expected.mean()
    torch.testing.assert_close(found[0, 1], expected)
    found[0, 1] = states[0, 1]
    assert torch.equal(found, states)  # all other pieces, bit for bit
    assert prompt_weights.emphasize(states, torch.ones(2, 3, 77)) is states


# --- pictures ---


@pytest.fixture(scope="module")
def base() -> Any:
    return sd2.tiny(1)


def draw(base: Any, **changes: Any) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        pictures = base.sample(replace(REQUEST, **changes))
    return np.stack([np.asarray(picture, dtype=np.int64) for picture in pictures])


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return int(np.abs(one - other).max()) <= 1  # sums of another order


def test_the_grammar_reaches_pictures(base: Any) -> None:
    plain = draw(base)
    for text in (
        "1girl, (red:1.9) dress",
        "1girl BREAK red dress",
        "1girl, red dress" + ", dog" * 60,
    ):
        assert not same(draw(base, text=text), plain), text
    assert same(draw(base, text="(1girl, red dress:1.0)"), plain)
    assert not same(draw(base, negative="(blurry:1.9)"), plain)


def test_words_behind_the_75th_token_count(base: Any) -> None:
    long = "dog, " * 50
    assert not same(draw(base, text=long + "red"), draw(base, text=long + "blue"))
    assert not same(draw(base, negative=long + "red"), draw(base, negative=long + "blue"))


def test_editing_reads_each_step_its_own_text(base: Any) -> None:
    """[a:b:WHEN] from the first step on is b, and after the last one still a."""
    red, blue = draw(base, text="red dress"), draw(base, text="blue dress")
    assert same(draw(base, text="[red:blue:0] dress"), blue)
    assert same(draw(base, text="[red:blue:4] dress"), red)
    half = draw(base, text="[red:blue:0.5] dress")
    assert not same(half, red)
    assert not same(half, blue)
    assert not same(draw(base, text="[red|blue] dress"), half)
    heun = draw(base, text="[red:blue:4] dress", sampler="Heun")
    assert same(heun, draw(base, text="red dress", sampler="Heun"))


def test_a_negative_prompt_without_guidance_changes_nothing(base: Any) -> None:
    plain = draw(base, cfg_scale=1.0)
    assert np.array_equal(draw(base, cfg_scale=1.0, negative="dog, " * 60), plain)


def test_no_weight_of_a_word_reaches_sdxls_pooled_vector() -> None:
    base = sdxl.tiny(1)
    far = [
        base._encode_prompts(["dog, " * 50 + word], ClipTextOptions()) for word in ("red", "blue")
    ]
    assert far[0]["states_BTE"].shape[1] == 2 * 77
    assert not torch.equal(far[0]["states_BTE"], far[1]["states_BTE"])
    assert torch.equal(far[0]["pooled_BE"], far[1]["pooled_BE"])
    assert draw(base, text="dog, " * 50, steps=2).shape == (2, 32, 32, 3)
    plain = base._encode_prompts(["1girl, dog", ""], ClipTextOptions())
    weighted = base._encode_prompts(["1girl, (dog:1.5)", ""], ClipTextOptions())
    caption = base.encode_captions(["1girl, dog", ""], ClipTextOptions())
    assert torch.equal(weighted["pooled_BE"], plain["pooled_BE"])
    assert torch.equal(caption["pooled_BE"], plain["pooled_BE"])
    assert torch.equal(caption["states_BTE"], plain["states_BTE"])
    assert not torch.equal(weighted["states_BTE"], plain["states_BTE"])


def test_captions_are_not_read_by_the_grammar() -> None:
    base: StableDiffusion = sd2.tiny(1)
    plain = base.encode_captions(["(dog:1.5)"], ClipTextOptions())
    weighted = base._encode_prompts(["(dog:1.5)"], ClipTextOptions())
    assert not torch.equal(plain["states_BTE"], weighted["states_BTE"])
    assert torch.equal(
        plain["states_BTE"], base._encode_prompts([r"\(dog:1.5\)"], ClipTextOptions())["states_BTE"]
    )
