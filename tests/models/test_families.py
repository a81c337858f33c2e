"""The model families: what they load, what they are told of a text, and kohya's names."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from optbench.errors import BaseError
from optbench.lora.network import LoraNetwork, build_network
from optbench.lora.save import save_lora
from optbench.models import latent_diffusion, load_base, sd2, sd15, sdxl
from optbench.models.assemble import assemble
from optbench.models.checkpoint import AUTOENCODER
from optbench.models.files.families import FAMILIES as FACTS
from optbench.models.lora_targets import text_targets, unet_targets
from optbench.models.sdxl import StableDiffusionXL
from optbench.models.stable_diffusion import StableDiffusion
from optbench.models.text import clip
from optbench.models.text.clip import ClipTextOptions, clip_tokenizer
from optbench.records import LoraTarget, Sizes
from tests.builders.checkpoint_files import (
    AnyBase,
    encoders_of,
    in_original_layout,
    options,
    write_file,
    write_folder,
)
from tests.builders.small_training import NETWORK

CPU = torch.device("cpu")
FAMILIES = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl}
SIZES = [Sizes(original=(640, 480), crop=(3, 0), target=(64, 48))]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest) -> AnyBase:
    """Return a random instance of each family, reading CLIP's own tokens."""
    made: AnyBase = FAMILIES[request.param].tiny(1)
    if request.param == "sd15":
        assert isinstance(made, StableDiffusion)
        made.tokenizers = (clip_tokenizer(),)
        config = CLIPTextConfig(
            **{**made.text_encoder.config.to_dict(), "vocab_size": 49408, "eos_token_id": 49407}
        )
        made.text_encoders = (CLIPTextModel(config).eval().requires_grad_(False),)
    return made


def load_file_of(base: AnyBase, path: Path, **changes: Any) -> AnyBase:
    """Load a single file of this small base's sizes, which no shipped family has."""
    configs = [encoder.config.to_dict() for encoder in encoders_of(base)]
    settings: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "cache_dir": None}
    asked = options(
        base.family,
        path,
        **{"v_parameterization": (base.process.prediction == "v"), **changes},
    )
    shipped = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl}[base.family].SINGLE_FILE
    single = latent_diffusion.SingleFile(
        unet=base.unet.config,
        vae=base.vae.config,
        text_encoders=tuple(
            replace(file, config=config)
            for file, config in zip(shipped.text_encoders, configs, strict=True)
        ),
    )
    return latent_diffusion.load(type(base), single, asked, **settings)


def weights(base: AnyBase) -> dict[str, Tensor]:
    parts = [base.unet, base.vae, *encoders_of(base)]
    return {f"{i}.{n}": w for i, part in enumerate(parts) for n, w in part.named_parameters()}


def assert_same(found: AnyBase, expected: AnyBase, *, through: torch.dtype = torch.float32) -> None:
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    for name, weight in other.items():
        assert torch.equal(one[name], weight.to(through).float()), name
    with torch.no_grad():
        states = [
            loaded.encode_captions(["a cat!", ""], ClipTextOptions())
            for loaded in (found, expected)
        ]
    if through == torch.float32:
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


# --- files ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_single_file_gives_the_base_it_was_written_from(
    base: AnyBase, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = write_file(base, tmp_path / "model.safetensors", dtype=dtype)
    found = load_file_of(base, path)
    assert_same(found, base, through=dtype)
    assert found.process.prediction == base.process.prediction
    assert found.model_version == base.model_version
    assert not any(weight.requires_grad for weight in weights(found).values())


def test_a_folder_gives_the_base_it_was_written_from(base: AnyBase, tmp_path: Path) -> None:
    folder = write_folder(base, tmp_path / "model")
    found = load_base(options(base.family, folder), device=CPU, dtype=torch.float32)
    assert isinstance(found, (StableDiffusion, StableDiffusionXL))
    assert_same(found, base)
    assert found.process.prediction == base.process.prediction


def test_original_names_are_those_that_diffusers_reads(base: AnyBase) -> None:
    """With diffusers' own converter as the judge of every name and shape."""
    tensors = in_original_layout(base)
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), base.unet.config)
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), base.vae.config)
    for converted, model in ((unet, base.unet), (vae, base.vae)):
        expected = model.state_dict()
        assert converted.keys() == expected.keys()
        for name, weight in expected.items():
            assert torch.equal(converted[name].reshape(weight.shape), weight), name


def test_open_clips_names_are_those_that_diffusers_reads() -> None:
    base = sdxl.tiny(2)
    encoder = base.text_encoders[1]
    tensors = in_original_layout(base)
    found = single_file_utils.convert_open_clip_checkpoint(
        encoder, dict(tensors), prefix="conditioner.embedders.1.model."
    )
    expected = encoder.state_dict()
    assert {name for name in found if "position_ids" not in name} == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_an_autoencoder_alone_takes_the_place_of_the_own_one(base: AnyBase, tmp_path: Path) -> None:
    path = write_file(base, tmp_path / "model.safetensors")
    other = copy.deepcopy(base.vae)
    for weight in other.parameters():
        weight.data += 1
    alone = {
        name.removeprefix("first_stage_model."): value + 1
        for name, value in in_original_layout(base).items()
        if name.startswith("first_stage_model.")
    }
    save_file(
        {name: value.contiguous() for name, value in alone.items()}, tmp_path / "v.safetensors"
    )
    found = load_file_of(base, path, vae=str(tmp_path / "v.safetensors"))
    plain = load_file_of(base, path)
    for (name, one), two in zip(found.vae.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert found.fingerprint == plain.fingerprint
    assert found.vae_fingerprint != plain.vae_fingerprint


def test_a_folder_with_an_autoencoder_of_older_names_is_read(tmp_path: Path) -> None:
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=2, **_TWO_LEVELS)
    vae.save_pretrained(tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    renamed = {}
    for name, value in tensors.items():
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = value
    assert renamed.keys() != tensors.keys()
    file.unlink()
    save_file(renamed, file)
    base = sd2.tiny(3)
    folder = write_folder(base, tmp_path / "model")
    asked = options("sd2", folder, vae=str(tmp_path / "vae"))
    found = load_base(asked, device=CPU, dtype=torch.float32)
    assert isinstance(found, StableDiffusion)
    for (name, one), two in zip(found.vae.named_parameters(), vae.parameters(), strict=True):
        assert torch.equal(one, two), name


_TWO_LEVELS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def test_a_pickle_of_tensors_is_read_and_any_other_is_refused(tmp_path: Path) -> None:
    base = sd2.tiny(1)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": in_original_layout(base), "global_step": 7}, path)
    assert_same(load_file_of(base, path), base)

    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"state_dict": {"a": Program()}}, path)
    with pytest.raises(BaseError, match="holds more than tensors"):
        load_file_of(base, path)
    assert not (tmp_path / "was-run").exists()


def test_a_weight_that_is_missing_or_misshapen_is_named(tmp_path: Path) -> None:
    base = sd15.tiny(1)
    tensors = in_original_layout(base)
    name = "model.diffusion_model.middle_block.1.proj_in.weight"
    path = tmp_path / "model.safetensors"
    for change, words in ((None, "1 weights are missing"), (torch.ones(3, 5), "3x5")):
        changed = {key: value for key, value in tensors.items() if key != name}
        changed.update({} if change is None else {name: change})
        save_file({key: value.contiguous() for key, value in changed.items()}, path)
        with pytest.raises(BaseError, match=words):
            load_file_of(base, path)


@pytest.mark.parametrize(("word", "expected"), [(None, True), (False, False)])
def test_a_file_of_sdxl_may_say_that_it_predicts_v(
    tmp_path: Path, word: bool | None, expected: bool
) -> None:
    base = sdxl.tiny(1)
    tensors = {key: value.contiguous() for key, value in in_original_layout(base).items()}
    save_file({**tensors, "v_pred": torch.zeros(0)}, tmp_path / "model.safetensors")
    found = load_file_of(base, tmp_path / "model.safetensors", v_parameterization=word)
    assert (found.process.prediction == "v") == expected


# --- texts and sizes ---


def kohyas_pieces(ids: list[int], *, end: int, pad: int) -> list[list[int]]:
    """Return pieces of 77 of the ids of N + 2 tokens, by the rule of kohya's trainer in words."""
    pieces = []
    for start in range(1, len(ids) - 1, 75):
        piece = [ids[0], *ids[start : start + 75], ids[-1]]
        if pad != end:
            if piece[-2] not in (end, pad):
                piece[-1] = end
            if piece[1] == pad:
                piece[1] = end
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize("length", [75, 150, 225])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
@pytest.mark.parametrize("num_words", [0, 3, 74, 75, 76, 149, 150, 151, 300])
def test_captions_are_cut_into_pieces_as_kohya_cuts_them(
    length: int, pad: str, num_words: int
) -> None:
    tokenizer = clip_tokenizer(pad_token=pad)
    text = " ".join(["cat", "dog", "red"] * 100).split()[:num_words]
    found = clip.token_pieces(tokenizer, [" ".join(text)], max_token_length=length)
    words = [tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in text][:length]
    ids = [49406, *words, 49407]
    ids += [tokenizer.pad_token_id] * (length + 2 - len(ids))
    expected = [ids]
    if length > 75:
        expected = kohyas_pieces(ids, end=49407, pad=tokenizer.pad_token_id)
    assert found[0].tolist() == expected


def test_pieces_are_encoded_apart_and_joined_at_their_marks(base: AnyBase) -> None:
    text = " ".join(["cat", "dog", "red"] * 40)
    with torch.no_grad():
        whole = base.encode_captions([text, "a"], ClipTextOptions(max_token_length=150))[
            "states_BTE"
        ]
        start = base.encode_captions([text], ClipTextOptions())["states_BTE"]
    assert whole.shape[1] == 152
    # Sums of a batch of four run in another order than those of one.
    torch.testing.assert_close(whole[:1, :76], start[:, :76], rtol=1e-4, atol=1e-4)
    second = " ".join((["cat", "dog", "red"] * 40)[75:])
    with torch.no_grad():
        rest = base.encode_captions([second], ClipTextOptions())["states_BTE"]
    torch.testing.assert_close(whole[:1, 76:121], rest[:, 1:46], rtol=1e-4, atol=1e-4)


def test_sdxl_reads_a_text_as_diffusers_does() -> None:
    base = sdxl.tiny(4)
    pipeline = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        text_encoder_2=base.text_encoders[1],
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=None,
        add_watermarker=False,
    )
    texts = ["a photo of a cat", "", "dog " * 90]
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False)
        found = base.encode_captions(texts, ClipTextOptions())
        long = base.encode_captions(texts, ClipTextOptions(max_token_length=225))
    torch.testing.assert_close(found["states_BTE"], states)
    torch.testing.assert_close(found["pooled_BE"], pooled)
    # Of a long text the vector is that of its first 75 tokens.
    torch.testing.assert_close(long["pooled_BE"], pooled, rtol=1e-4, atol=1e-4)


def test_sdxl_is_told_heights_before_widths() -> None:
    found = sdxl.tiny(1).encode_sizes(SIZES)["sizes_B6"]
    assert found.tolist() == [[480, 640, 0, 3, 48, 64]]


def test_every_size_moves_sdxls_prediction() -> None:
    base = sdxl.tiny(1)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def predicted(sizes: Sizes) -> Tensor:
        with torch.no_grad():
            text = base.encode_captions(["a"], ClipTextOptions())
            told = {**text, **base.encode_sizes([sizes])}
            return base.predict(noisy, torch.tensor([500]), told)

    first = predicted(SIZES[0])
    for change in ({"original": (320, 480)}, {"crop": (64, 0)}, {"target": (128, 48)}):
        changed = Sizes(**{**_fields(SIZES[0]), **change})
        assert float((predicted(changed) - first).abs().max()) > 1e-6, change


def _fields(sizes: Sizes) -> dict[str, Any]:
    return {"original": sizes.original, "crop": sizes.crop, "target": sizes.target}


# --- kohya's names ---


def kind(target: LoraTarget) -> str:
    weight = target.module.get_parameter("weight")
    if weight.dim() == 2:
        return "linear"
    return f"{weight.shape[2]}x{weight.shape[3]}"


def real_targets(family: str) -> list[LoraTarget]:
    """Return the layers of the published architecture, without its weights."""
    with torch.device("meta"):
        if family == "sd2":
            encoder = CLIPTextModel(CLIPTextConfig(**sd2.TEXT_ENCODER))
            unet = UNet2DConditionModel(**sd2.UNET)
            family = FACTS["sd2"]
            return [*text_targets(encoder, family), *unet_targets(unet, family)]
        first = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_ENCODER))
        second = CLIPTextModelWithProjection(CLIPTextConfig(**sdxl.TEXT_ENCODER_2))
        unet = UNet2DConditionModel(**sdxl.UNET)
    family = FACTS["sdxl"]
    return [
        *text_targets(first, family),
        *text_targets(second, family, number=1),
        *unet_targets(unet, family),
    ]


@pytest.mark.parametrize(
    ("family", "counts", "sizes"),
    [
        ("sd2", (138, 192, 278), (3_391_488, 3_457_024, 6_296_064)),
        ("sdxl", (264, 722, 788), (7_225_344, 21_278_720, 23_170_560)),
    ],
)
def test_layers_and_their_sizes_are_those_that_kohya_counts(
    family: str, counts: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    """Counted in sd-scripts itself on the same architectures, at dim 8 and conv_dim 4."""
    targets = real_targets(family)
    assert len({target.name for target in targets}) == len(targets)
    text = [target for target in targets if target.part == "text_encoder"]
    unet = [target for target in targets if target.part == "unet"]
    plain = [target for target in unet if not target.needs_conv_dim]
    assert tuple(len(some) for some in (text, plain, unet)) == counts

    def size(some: list[LoraTarget]) -> int:
        total = 0
        for target in some:
            weight = target.module.get_parameter("weight")
            rank = 4 if kind(target) == "3x3" else 8
            total += rank * (weight[0].numel() + weight.shape[0])
        return total

    assert tuple(size(some) for some in (text, plain, unet)) == sizes


def test_sdxls_convolutions_are_those_that_kohya_counts() -> None:
    counted = Counter(kind(target) for target in real_targets("sdxl") if target.part == "unet")
    assert counted == {"linear": 739, "1x1": 11, "3x3": 38}


SDXL_BLOCKS = {  # kohya's block -> layers with a LoRA when conv_dim is given
    2: 3, 3: 3, 4: 1, 5: 26, 6: 25, 7: 1, 8: 106, 9: 105, 10: 3, 11: 102, 12: 3, 13: 106, 14: 106,
    15: 107, 16: 26, 17: 26, 18: 27, 19: 4, 20: 4, 21: 4,
}  # fmt: skip


def test_sdxls_layers_lie_in_the_blocks_where_kohya_counts_them() -> None:
    places = {"input": 1, "middle": 10, "output": 13}
    counted: Counter[int] = Counter()
    for target in real_targets("sdxl"):
        if target.part == "unet":
            side, _, index = target.name.removeprefix("lora_unet_").split("_")[:3]
            counted[places[side] + int(index)] += 1
    assert counted == SDXL_BLOCKS


@pytest.mark.parametrize(
    "name",
    [
        "lora_te1_text_model_encoder_layers_11_mlp_fc2",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
        "lora_unet_input_blocks_4_1_proj_in",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_6_0_op",
        "lora_unet_middle_block_2_emb_layers_1",
        "lora_unet_output_blocks_8_0_out_layers_3",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_5_2_conv",
    ],
)
def test_sdxls_layers_have_kohyas_names(name: str) -> None:
    assert name in {target.name for target in real_targets("sdxl")}


# --- in diffusers ---


def trained_network(base: AnyBase, *, conv_dim: int | None) -> LoraNetwork:
    network = build_network(
        base.lora_targets(),
        replace(
            NETWORK,
            dim=2,
            alpha=1.0,
            conv_dim=conv_dim,
            conv_alpha=None if conv_dim is None else 1.0,
        ),
        seed=3,
    )
    draw = torch.Generator().manual_seed(5)
    for group in network.parameter_groups():
        for weight in group.parameters:
            weight.data = 0.3 * torch.randn(weight.shape, generator=draw)
    return network


@pytest.mark.parametrize("conv_dim", [None, 2])
def test_diffusers_loads_every_key_and_computes_what_we_compute(
    base: AnyBase, tmp_path: Path, conv_dim: int | None
) -> None:
    network = trained_network(base, conv_dim=conv_dim)
    path = tmp_path / "lora.safetensors"
    save_lora(path, network.state_dict(), precision="float", metadata={})
    folder = write_folder(base, tmp_path / "model")
    kinds = {"sdxl": StableDiffusionXLPipeline}
    pipeline = kinds.get(base.family, StableDiffusionPipeline).from_pretrained(
        folder, local_files_only=True
    )
    pipeline.load_lora_weights(path.parent, weight_name=path.name)  # raises on keys it cannot place
    parts = [pipeline.unet, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    loaded = sum(
        "lora_A" in name
        for part in parts
        if part is not None
        for name, _ in part.named_parameters()
    )
    assert loaded == sum(key.endswith("lora_down.weight") for key in network.state_dict())
    theirs, ours = predictions(base, pipeline, network)
    with torch.no_grad():
        plain, _ = predictions(base, pipeline, None)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    assert float((plain - ours).abs().max()) > 1e-2


def predictions(base: AnyBase, pipeline: Any, network: LoraNetwork | None) -> tuple[Tensor, Tensor]:
    """Return the prediction for one text by diffusers' parts and by ours with the network."""
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([500])
    theirs = copy.copy(base)
    theirs.unet = pipeline.unet
    if isinstance(theirs, StableDiffusionXL):
        theirs.text_encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    else:
        theirs.text_encoders = (pipeline.text_encoder,)

    def predicted(one: AnyBase) -> Tensor:
        text = one.encode_captions(["a cat"], ClipTextOptions())
        return one.predict(noisy, timesteps, {**text, **one.encode_sizes(SIZES)})

    with torch.no_grad():
        if network is None:
            return predicted(base), predicted(base)
        with network.attached():
            ours = predicted(base)
        return predicted(theirs), ours


# --- exactly the published architectures ---


def test_the_autoencoder_of_a_single_file_is_the_published_one() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**AUTOENCODER)
    assert sum(weight.numel() for weight in vae.parameters()) == 83_653_863
    assert vae.config.scaling_factor == 0.18215
    assert sdxl.VAE["scaling_factor"] == 0.13025


@pytest.mark.parametrize(
    ("config", "num_weights"),
    [(sd15.UNET, 859_520_964), (sd2.UNET, 865_910_724), (sdxl.UNET, 2_567_463_684)],
)
def test_the_unet_of_a_single_file_has_the_published_number_of_weights(
    config: dict[str, Any], num_weights: int
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    assert sum(weight.numel() for weight in unet.parameters()) == num_weights


def test_no_weight_is_left_empty() -> None:
    with pytest.raises(ValueError, match="weights are missing"):
        assemble(
            lambda: torch.nn.Linear(2, 2),
            _Nothing(),
            lambda name: (),
            device=CPU,
            dtype=torch.float32,
        )


class _Nothing:
    shapes: dict[str, tuple[int, ...]] = {}

    def read(self, name: str) -> Tensor:
        raise AssertionError(json.dumps(name))
