"""Stable Diffusion 1.x, and everything of its architecture: the embedded base is one of them.

Shapes: B batch, C latent channels, H and W latent height and width (pixels / pixels per latent),
T tokens, E embedding width.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from optbench.bases._computing import attend_with, keep_activations, text_model
from optbench.bases._noising import NoiseSchedule
from optbench.contracts import Conditioning, PredictionType, SampleRequest
from optbench.errors import BaseError, Problem
from optbench.options import Attention, BaseOptions
from optbench.paths import asset, folder_fingerprint
from optbench.records import LoraTarget
from optbench.samplers import SAMPLERS

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_VERSION = "sd_v1"  # kohya's word for ss_base_model_version

# kohya's lists: a LoRA goes on every linear and convolution inside these classes.
_TEXT_CLASSES = ("CLIPAttention", "CLIPMLP")
_UNET_CLASSES = ("Transformer2DModel",)
_UNET_CONV_CLASSES = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_NUM_TOKENS = 77  # what CLIP's text encoder has positions for
_TARGETS = ("epsilon", "v_prediction")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_SD2_TEXT_WIDTH = 1024
# All that the three libraries are known to raise for a file that is missing, cut off or other.
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
_SCHEDULE_KEYS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The loaded pieces of one checkpoint."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    schedule: Mapping[str, Any]


class StableDiffusion:
    """A frozen Stable Diffusion 1.x behind `contracts.Base`."""

    family = "stable_diffusion"

    def __init__(self, parts: _Parts, *, name: str, fingerprint: str, vae_fingerprint: str) -> None:
        """Freeze the parts and keep them; the autoencoder stays in float32."""
        self.name = name
        self.fingerprint = fingerprint
        self.vae_fingerprint = vae_fingerprint
        self.tokenizer = parts.tokenizer
        self.text_encoder = parts.text_encoder.eval().requires_grad_(False)
        self.vae = parts.vae.eval().requires_grad_(False)
        self.unet = parts.unet.eval().requires_grad_(False)
        self.device = self.unet.device
        self.dtype = self.unet.dtype
        self.pixels_per_latent = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._use_schedule(NoiseSchedule(parts.schedule))

    def _use_schedule(self, schedule: NoiseSchedule) -> None:
        self._schedule = schedule
        self.prediction_type: PredictionType = schedule.prediction_type
        self.alphas_cumprod_T: Tensor = schedule.alphas_cumprod_T

    def with_zero_terminal_snr(self) -> StableDiffusion:
        """Return this base, weights shared, under a noise schedule that leaves no signal."""
        other = copy.copy(self)
        other.fingerprint = f"{self.fingerprint}+zero-terminal-snr"
        other._use_schedule(self._schedule.zero_terminal())
        return other

    def compute_with(self, *, gradient_checkpointing: bool, attention: Attention) -> None:
        """Recompute activations or keep them, and attend with one kind of code, from now on."""
        keep_activations(self.unet, [self.text_encoder], are_recomputed=gradient_checkpointing)
        attend_with(self.unet, [self.text_encoder], attention)

    def encode_images(self, pixels_BCHW: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return one sample of each picture's posterior, scaled, float32 on the CPU."""
        pixels_BCHW = pixels_BCHW.to(self.device, torch.float32)
        posterior = self.vae.encode(pixels_BCHW).latent_dist
        mean_BCHW, spread_BCHW = posterior.mean.cpu(), posterior.std.cpu()
        shape = mean_BCHW.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=one) for one in generators])
        scaled: Tensor = (mean_BCHW + spread_BCHW * noise) * self.vae.config.scaling_factor
        return scaled

    def encode_captions(self, captions: Sequence[str], *, clip_skip: int) -> Conditioning:
        """Return {"states_BTE"}: the text encoder's states of 77 tokens.

        With `clip_skip` n the states after the n-th last layer, through the final norm, as A1111.
        """
        ids = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=_NUM_TOKENS,
            return_tensors="pt",
        ).input_ids.to(self.device)
        if clip_skip == 1:
            return {"states_BTE": self.text_encoder(input_ids=ids).last_hidden_state}
        encoded = self.text_encoder(input_ids=ids, output_hidden_states=True)
        states_BTE = encoded.hidden_states[-clip_skip]
        return {"states_BTE": text_model(self.text_encoder).final_layer_norm(states_BTE)}

    def cut_texts(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the texts of more than 77 tokens, the first and the last mark included."""
        return tuple(one for one in texts if len(self.tokenizer(one).input_ids) > _NUM_TOKENS)

    def sample_timesteps(
        self,
        generators: Sequence[torch.Generator],
        *,
        min_timestep: int = 0,
        max_timestep: int | None = None,
    ) -> Tensor:
        """Return uniform timesteps in [`min_timestep`, `max_timestep`), int64 (B,), on the CPU."""
        return self._schedule.sample_timesteps(
            generators, min_timestep=min_timestep, max_timestep=max_timestep
        )

    def noisy_and_target(
        self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return sqrt(a) x + sqrt(1 - a) e and its target: e, or v for v-prediction."""
        return self._schedule.noisy_and_target(latents_BCHW, noise_BCHW, timesteps_B)

    def predict(
        self, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the unet's prediction, shaped like `noisy_BCHW`."""
        predicted: Tensor = self.unet(
            noisy_BCHW.to(self.dtype), timesteps_B, conditioning["states_BTE"], return_dict=False
        )[0]
        return predicted

    def lora_targets(self) -> tuple[LoraTarget, ...]:
        """Return every layer that may carry a LoRA under kohya's names, text encoder first."""
        text_root = text_model(self.text_encoder)
        text = _layers(text_root, _TEXT_CLASSES, prefix="lora_te_text_model")
        unet = _layers(self.unet, _UNET_CLASSES, prefix="lora_unet")
        convs = _layers(self.unet, _UNET_CONV_CLASSES, prefix="lora_unet")
        targets = [
            LoraTarget(name=name, module=layer, part="text_encoder", needs_conv_dim=False)
            for name, layer in text
        ]
        for found, needs_conv_dim in ((unet, False), (convs, True)):
            targets += [
                LoraTarget(name=name, module=layer, part="unet", needs_conv_dim=needs_conv_dim)
                for name, layer in found
            ]
        return tuple(targets)

    def sample(self, request: SampleRequest) -> list[Image]:
        """Return one picture per seed; noise is made on the CPU, so it is the same everywhere."""
        class_name, settings = SAMPLERS[request.sampler]
        sampler = getattr(diffusers, class_name)(
            **self._schedule.sampler_settings(), **settings, steps_offset=1
        )
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=sampler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds]
        size = self.pixels_per_latent
        shape = (self.unet.config.in_channels, request.height // size, request.width // size)
        latents = torch.stack([torch.randn(shape, generator=one) for one in generators])
        texts = [request.text, request.negative]
        states = self.encode_captions(texts, clip_skip=request.clip_skip)["states_BTE"]
        num_pictures = len(request.seeds)
        latents = pipeline(
            prompt_embeds=states[:1].repeat(num_pictures, 1, 1),
            negative_prompt_embeds=states[1:].repeat(num_pictures, 1, 1),
            latents=latents.to(self.device, self.dtype),
            generator=generators,
            width=request.width,
            height=request.height,
            guidance_scale=request.cfg_scale,
            num_inference_steps=request.steps,
            output_type="latent",
        ).images
        # Not the pipeline's own decoding: it would hand 16-bit latents to a float32 autoencoder.
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        images: list[Image] = pipeline.image_processor.postprocess(self.vae.decode(scaled).sample)
        return images


def load(options: BaseOptions, *, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Return the checkpoint in diffusers layout at `options.path`.

    Raises:
        BaseError: If a part is missing, damaged, or not Stable Diffusion 1.x.
    """
    folder = Path(options.path)
    vae_folder = folder / "vae" if options.vae is None else Path(options.vae)
    schedule = folder / "scheduler" / "scheduler_config.json"
    text = functools.partial(_whole, CLIPTextModel, dtype=dtype)
    vae = functools.partial(_whole, AutoencoderKL, torch_dtype=torch.float32)
    unet = functools.partial(_whole, UNet2DConditionModel, torch_dtype=dtype)
    parts = _Parts(
        tokenizer=_part(folder / "tokenizer", _read_tokenizer),
        text_encoder=_part(folder / "text_encoder", text),
        vae=_part(vae_folder, vae, where="base.path" if options.vae is None else "base.vae"),
        unet=_part(folder / "unet", unet),
        schedule=_part(schedule, _read_schedule),
    )
    for module in (parts.text_encoder, parts.vae, parts.unet):
        module.to(device, memory_format=torch.channels_last)
    _check_family(parts, where=f"base.path={options.path}")
    return StableDiffusion(
        parts,
        name=options.name,
        fingerprint=folder_fingerprint(folder),
        vae_fingerprint=folder_fingerprint(vae_folder),
    )


def tiny(seed: int) -> StableDiffusion:
    """Return a random Stable Diffusion of a few thousand weights, for tests."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _random_base(f"random-{seed}")


def _random_base(name: str) -> StableDiffusion:
    tokenizer = CLIPTokenizer.from_pretrained(asset("tiny") / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
    }
    parts = _Parts(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(config),
        vae=vae,
        unet=unet,
        schedule=schedule,
    )
    return StableDiffusion(parts, name=name, fingerprint=name, vae_fingerprint=name)


def _layers(
    root: nn.Module, classes: Sequence[str], *, prefix: str
) -> Iterator[tuple[str, nn.Module]]:
    """Yield kohya's name and the layer for every linear and convolution inside `classes`."""
    for block_name, block in root.named_modules():
        if type(block).__name__ not in classes:
            continue
        for layer_name, layer in block.named_modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                yield f"{prefix}_{block_name}_{layer_name}".replace(".", "_"), layer


def _part(path: Path, load: Callable[[Path], Any], *, where: str = "base.path") -> Any:
    """Return what `load` makes of one part of a checkpoint, or say which part is damaged."""
    try:
        return load(path)
    except _UNREADABLE as error:
        first_line = str(error).partition("\n")[0]
        raise BaseError(
            Problem(
                found=f"{path}: {type(error).__name__}: {first_line}",
                expected="a part of a Stable Diffusion 1.x in diffusers layout, with "
                "safetensors weights",
                where=where,
                fix="save the model again with save_pretrained, or choose another base",
            )
        ) from error


def _whole(kind: Any, folder: Path, **settings: Any) -> Any:
    """Return the model in `folder`; a weight that is not there would else be a random one."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    model, found = kind.from_pretrained(
        folder, output_loading_info=True, use_safetensors=True, local_files_only=True, **settings
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, for instance {missing[0]}")
    return model


def _read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer; its library says nothing useful of a damaged file, so look first."""
    json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(merges, start=1):
        if line and not line.startswith("#version") and len(line.split(" ")) != 2:
            raise ValueError(f"merges.txt, line {number}: {line!r} is no pair")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _read_schedule(path: Path) -> Mapping[str, Any]:
    """Return the noise schedule and what the unet predicts, "epsilon" where nothing is said."""
    schedule = {"prediction_type": "epsilon", **json.loads(path.read_text(encoding="utf-8"))}
    if absent := [key for key in _SCHEDULE_KEYS if key not in schedule]:
        raise ValueError(f"no {', '.join(absent)}")
    for key, known in (("prediction_type", _TARGETS), ("beta_schedule", _BETA_SCHEDULES)):
        if schedule[key] not in known:
            raise ValueError(f"{key} {schedule[key]!r}, not one of {', '.join(known)}")
    return {key: schedule[key] for key in (*_SCHEDULE_KEYS, "prediction_type")}


def _check_family(parts: _Parts, *, where: str) -> None:
    """Refuse a checkpoint whose parts do not fit together as SD1.x's do."""
    wanted = parts.unet.config.cross_attention_dim
    given = parts.text_encoder.config.hidden_size
    num_words, num_rows = len(parts.tokenizer), parts.text_encoder.config.vocab_size
    num_read, num_written = parts.unet.config.in_channels, parts.vae.config.latent_channels
    if num_words != num_rows:
        found = f"a tokenizer of {num_words} tokens and a text encoder of {num_rows}"
        fix = "copy vocab.json and merges.txt of the original model into tokenizer/"
    elif parts.unet.config.addition_embed_type is not None:
        found, fix = "an SDXL unet", "choose a Stable Diffusion 1.x checkpoint"
    elif given == _SD2_TEXT_WIDTH:
        found, fix = "the text encoder of Stable Diffusion 2.x", "choose a 1.x checkpoint"
    elif wanted != given:
        found = f"a unet that reads {wanted} numbers per token, a text encoder that writes {given}"
        fix = "choose a Stable Diffusion 1.x checkpoint"
    elif num_read != num_written:
        found = f"a unet that reads {num_read} channels, an autoencoder that writes {num_written}"
        fix = "choose a checkpoint that is not for inpainting, and base.vae of the same family"
    else:
        return
    expected = "Stable Diffusion 1.x, its parts made for one another"
    raise BaseError(Problem(found=found, expected=expected, where=where, fix=fix))
