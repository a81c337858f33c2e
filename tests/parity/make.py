"""Compute the numbers of this folder with sd-scripts' own functions: run by hand, beside it.

    PYTHONPATH=. python tests/parity/make.py PATH_TO_SD_SCRIPTS

Needs an environment in which sd-scripts itself runs (commit 48d368fa with its requirements).
Nothing of its code is here: its functions are called, and what they return is written down.
README.md says what each file holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"
NUM_UPDATES = 200
RATES = [
    "constant",
    "constant_with_warmup --lr_warmup_steps=20",
    "constant_with_warmup --lr_warmup_steps=0.123",
    "linear",
    "linear --lr_warmup_steps=10%",
    "cosine",
    "cosine --lr_warmup_steps=20 --lr_scheduler_num_cycles=4",
    "cosine_with_restarts",
    "cosine_with_restarts --lr_scheduler_num_cycles=3 --lr_warmup_steps=21",
    "cosine_with_restarts --lr_scheduler_num_cycles=20",
    "cosine_with_min_lr --lr_scheduler_min_lr_ratio=0.1",
    "cosine_with_min_lr --lr_scheduler_min_lr_ratio=0.25 --lr_warmup_steps=10 "
    "--lr_scheduler_num_cycles=3",
    "polynomial",
    "polynomial --lr_scheduler_power=2 --lr_warmup_steps=0.1",
    "polynomial --lr_scheduler_power=0.5 --lr_scheduler_args lr_end=1e-5",
    "inverse_sqrt --lr_warmup_steps=20",
    "inverse_sqrt --lr_warmup_steps=20 --lr_scheduler_timescale=50",
    "inverse_sqrt",
    "warmup_stable_decay",
    "warmup_stable_decay --lr_warmup_steps=20",
    "warmup_stable_decay --lr_warmup_steps=20 --lr_decay_steps=40",
    "warmup_stable_decay --lr_warmup_steps=0.1 --lr_decay_steps=0.2 "
    "--lr_scheduler_min_lr_ratio=0.1",
    "piecewise_constant --lr_scheduler_args step_rules='\"1:50,0.5:120,0.01\"'",
]
LOSSES = [
    *(
        f"--loss_type={kind} --huber_schedule={schedule} --huber_c={c}{scale}"
        for kind in ("huber", "smooth_l1")
        for schedule, c, scale in (
            ("snr", 0.1, ""),
            ("snr", 0.02, ""),
            ("constant", 0.1, " --huber_scale=1.5"),
            ("exponential", 0.1, " --huber_scale=2"),
        )
    ),
    "",
    "--loss_type=l1",
    "--min_snr_gamma=5",
    "--min_snr_gamma=1",
    "--min_snr_gamma=5 --v_parameterization",
    "--debiased_estimation_loss",
    "--debiased_estimation_loss --v_parameterization",
    "--scale_v_pred_loss_like_noise_pred --v_parameterization",
    "--v_pred_like_loss=0.5",
    "--min_snr_gamma=5 --debiased_estimation_loss --v_pred_like_loss=0.25 --loss_type=huber",
    "--min_snr_gamma=3 --scale_v_pred_loss_like_noise_pred --debiased_estimation_loss "
    "--v_parameterization --loss_type=smooth_l1 --huber_schedule=exponential",
    "--prior_loss_weight=0.5 --reg_data_dir=reg --min_snr_gamma=5",
]
TIMESTEPS = [0, 1, 7, 50, 100, 200, 333, 400, 500, 600, 700, 800, 900, 950, 990, 999]
NOISES = [
    "--noise_offset=0.05",
    "--noise_offset=0.1 --adaptive_noise_scale=0.05",
    "--noise_offset=0.01 --adaptive_noise_scale=-0.2",
    "--multires_noise_iterations=6",
    "--multires_noise_iterations=8 --multires_noise_discount=0.8",
    "--multires_noise_iterations=1 --multires_noise_discount=0.3",
]
CAPTIONS = [
    "--shuffle_caption",
    "--shuffle_caption --keep_tokens=2",
    "--shuffle_caption --keep_tokens=9",
    "--keep_tokens=2",
    "--shuffle_caption '--keep_tokens_separator=|||'",
    "--shuffle_caption '--keep_tokens_separator=|||' --keep_tokens=1 '--secondary_separator=;;;'",
    "'--secondary_separator=;;;'",
    "--caption_separator=. --shuffle_caption '--secondary_separator=;;;'",
    "--caption_tag_dropout_rate=0.5 --keep_tokens=1",
    "--shuffle_caption --caption_tag_dropout_rate=0.3",
    "--token_warmup_step=100 --token_warmup_min=2 --keep_tokens=1",
    "--token_warmup_step=0.5 --shuffle_caption",
    "--enable_wildcard",
    "--enable_wildcard --shuffle_caption --keep_tokens=1",
    "--caption_prefix=trigger, --caption_suffix=best",
    "--caption_dropout_every_n_epochs=3",
    "--caption_dropout_rate=0.5 --shuffle_caption",
]
CAPTION_TEXTS = [
    "mychar, 1girl, red dress, garden, smile",
    "mychar",
    "",
    "a, b ||| c, d, e ||| f, g",
    "one;;;two, three, four;;;five",
    "first. second, with comma. third",
    "a {red|blue|green} dress, {{kept}}, tail",
    "line one, tag\nline two, {x|y}\nline three",
    " spaced ,  tags ,, empty ",
]
CAPTION_STEPS = [0, 1, 49, 99, 100, 150]
BUCKETS = [
    (resolution, options)
    for resolution in ("512,512", "768,512", "1024,1024")
    for options in (
        "--enable_bucket",
        "--enable_bucket --bucket_no_upscale",
        "--enable_bucket --bucket_reso_steps=128",
        "--enable_bucket --min_bucket_reso=300 --max_bucket_reso=1500",
        "",
    )
]
SD_LISTS = [
    "down_lr_weight=0,0,0,0,1,1,1,1,1,1,1,1 mid_lr_weight=0 up_lr_weight=1,1,1,1,1,1,1,1,1,1,1,1",
    "down_lr_weight=sine up_lr_weight=cosine+.25",
    "down_lr_weight=linear mid_lr_weight=0.5 up_lr_weight=reverse_linear+0.1",
    "down_lr_weight=1,,1,1,1,1,1,1,1,1,1,1",
    "up_lr_weight=0.5,0.25",
    "mid_lr_weight=0",
    "down_lr_weight=zeros+0.3 block_lr_zero_threshold=0.4",
    "up_lr_weight=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1,1.1,1.2 block_lr_zero_threshold=0.35",
    f"block_dims={','.join(map(str, range(25)))}",
    f"block_dims={','.join(['4'] * 25)} block_alphas={','.join(map(str, range(1, 26)))}",
    f"block_alphas={','.join(['2'] * 25)} mid_lr_weight=0.5",
    f"block_dims={','.join(['8'] * 25)} conv_block_dims={','.join(map(str, range(25)))}",
    f"conv_block_dims={','.join(map(str, range(25)))} up_lr_weight=linear conv_dim=3 conv_alpha=2",
    f"conv_block_dims={','.join(map(str, range(25)))}",
    "conv_dim=8",
    "conv_dim=8 conv_alpha=0.5 down_lr_weight=cosine",
    "conv_alpha=0.5",
]
SDXL_LISTS = [
    "mid_lr_weight=0",
    "down_lr_weight=sine up_lr_weight=0,1,1,1,1,1,1,1,1",
    "mid_lr_weight=0.5,0.25,1",
    f"block_dims={','.join(map(str, range(23)))}",
    "conv_dim=4 conv_alpha=2 up_lr_weight=reverse_linear",
]


def main(sd_scripts: Path) -> None:
    """Write every file of this folder."""
    sys.path.insert(0, str(sd_scripts))
    for write in (options, rates, losses, noises, captions, buckets, blocks, layers):
        write()


def _parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    import sdxl_train_network
    import train_network

    return train_network.setup_parser(), sdxl_train_network.setup_parser()


def _parse(text: str) -> argparse.Namespace:
    return _parsers()[0].parse_args(shlex.split(text))


def _save(name: str, tensors: dict[str, Tensor], about: str) -> None:
    metadata = {"about": about, "made with": f"sd-scripts {COMMIT}, torch {torch.__version__}"}
    save_file({key: value.contiguous() for key, value in tensors.items()}, HERE / name, metadata)


def _dump(name: str, content: Any, about: str) -> None:
    whole = {"about": about, "made_with": f"sd-scripts {COMMIT}", "cases": content}
    (HERE / name).write_text(json.dumps(whole, indent=None, separators=(",", ":")) + "\n")


def options() -> None:
    """Names, types, defaults, numbers of values and choices of both parsers."""
    table: dict[str, Any] = {}
    for parser in _parsers():
        for action in parser._actions:
            if action.dest != "help":
                table[action.dest] = [
                    type(action).__name__.strip("_"),
                    getattr(action.type, "__name__", None),
                    action.default,
                    action.nargs,
                    list(action.choices) if action.choices else None,
                ]
    _dump("options.json", table, "option: [action, type, default, nargs, choices]")


def rates() -> None:
    """The rate of each of 200 updates at learning_rate 1e-4, schedule by schedule."""
    from library import train_util

    tensors = {}
    for text in RATES:
        args = _parse(f"--lr_scheduler={text} --learning_rate=1e-4 --max_train_steps={NUM_UPDATES}")
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        schedule = train_util.get_scheduler_fix(args, optimizer, 1)
        values = []
        for _ in range(NUM_UPDATES):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        tensors[text] = torch.tensor(values, dtype=torch.float64)
    _save("rates.safetensors", tensors, rates.__doc__ or "")


def losses() -> None:
    """Each image's loss, with `prediction` and `target` as errors at `timesteps`."""
    import train_network
    from library import train_util
    from library.custom_train_functions import prepare_scheduler_for_custom_training

    generator = torch.Generator().manual_seed(1)
    shape = (len(TIMESTEPS), 4, 2, 3)
    prediction = torch.randn(shape, generator=generator)
    target = prediction + 0.3 * torch.randn(shape, generator=generator)
    timesteps = torch.tensor(TIMESTEPS)
    tensors = {"prediction": prediction, "target": target, "timesteps": timesteps}
    trainer = train_network.NetworkTrainer()
    scheduler = trainer.get_noise_scheduler(SimpleNamespace(zero_terminal_snr=False), "cpu")
    prepare_scheduler_for_custom_training(scheduler, "cpu")
    for text in LOSSES:
        args = _parse(text)
        huber_c = train_util.get_huber_threshold_if_needed(args, timesteps, scheduler)
        errors = train_util.conditional_loss(prediction, target, args.loss_type, "none", huber_c)
        loss = errors.mean(dim=(1, 2, 3))
        loss = loss * (args.prior_loss_weight if args.reg_data_dir else 1.0)
        tensors[text] = trainer.post_process_loss(loss, args, timesteps, scheduler)
    _save("losses.safetensors", tensors, losses.__doc__ or "")


@contextmanager
def _recorded(draws: list[Tensor]) -> Iterator[None]:
    """Keep every tensor that torch draws and every ratio that Python's random draws."""
    before = torch.randn, torch.randn_like, random.random

    def randn(*args: Any, **kwargs: Any) -> Tensor:
        draws.append(before[0](*args, **{k: v for k, v in kwargs.items() if k != "device"}))
        return draws[-1]

    def randn_like(tensor: Tensor, **_: Any) -> Tensor:
        draws.append(before[1](tensor))
        return draws[-1]

    def ratio() -> float:
        draws.append(torch.tensor(before[2](), dtype=torch.float64))
        return float(draws[-1])

    torch.randn, torch.randn_like, random.random = randn, randn_like, ratio  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn, torch.randn_like, random.random = before  # type: ignore[assignment]


def noises() -> None:
    """One image's noise after its options, the latent, the plain noise and every draw in turn."""
    from library import custom_train_functions as functions

    tensors: dict[str, Tensor] = {}
    for number, text in enumerate(NOISES):
        args = _parse(text)
        torch.manual_seed(number)
        random.seed(number)
        latent, noise = torch.randn(1, 4, 12, 10), torch.randn(1, 4, 12, 10)
        tensors |= {f"{text}/latent": latent[0], f"{text}/noise": noise[0].clone()}
        draws: list[Tensor] = []
        with _recorded(draws):
            if args.noise_offset:
                noise = functions.apply_noise_offset(
                    latent, noise, args.noise_offset, args.adaptive_noise_scale
                )
            if args.multires_noise_iterations:
                noise = functions.pyramid_noise_like(
                    noise, "cpu", args.multires_noise_iterations, args.multires_noise_discount
                )
        tensors[f"{text}/result"] = noise[0]
        for index, draw in enumerate(draws):
            tensors[f"{text}/draw{index:02}"] = draw[0] if draw.dim() == 4 else draw
    _save("noises.safetensors", tensors, noises.__doc__ or "")


class Scripted:
    """Draws that anyone can repeat: shuffling turns round, choices and numbers go on in turn."""

    def __init__(self) -> None:
        """Begin the rows of numbers."""
        self._choices = itertools.count()
        self._numbers = itertools.cycle([0.9, 0.1, 0.45, 0.7, 0.2])

    def shuffle(self, items: list[Any]) -> None:
        """Turn the list round."""
        items.reverse()

    def choice(self, items: list[Any]) -> Any:
        """Return the first, second, third ... item, beginning again; one alone is no choice."""
        if len(items) == 1:
            return items[0]
        return items[next(self._choices) % len(items)]

    def random(self) -> float:
        """Return the next number of the row."""
        return next(self._numbers)


def captions() -> None:
    """Captions as they are trained on, by options, text, update and epoch, with scripted draws."""
    from library import train_util

    cases = []
    for text in CAPTIONS:
        args = _parse(text)
        for caption, step in itertools.product(CAPTION_TEXTS, CAPTION_STEPS):
            if step and not args.token_warmup_step:
                continue
            for epoch in (1, 3) if args.caption_dropout_every_n_epochs else (1,):
                subset = SimpleNamespace(**vars(args))
                dataset = train_util.BaseDataset((512, 512), 1.0, False)
                dataset.current_epoch, dataset.current_step = epoch, step
                dataset.max_train_steps = NUM_UPDATES
                train_util.random = Scripted()
                result = dataset.process_caption(subset, caption)
                train_util.random = random
                cases.append([text, caption, step, epoch, result])
    _dump("captions.json", cases, "[options, caption, update, epoch, result]")


def buckets() -> None:
    """Bucket and resized size of images, by resolution, options and size."""
    from library import train_util

    numbers = random.Random(7)
    sizes = [(numbers.randint(256, 2400), numbers.randint(256, 2400)) for _ in range(30)]
    sizes += [(512, 512), (512, 768), (1920, 1080), (1050, 1080), (300, 300), (1024, 1536)]
    cases = []
    for resolution, text in BUCKETS:
        args = _parse(text)
        width, height = map(int, resolution.split(","))
        dataset = train_util.BaseDataset((width, height), 1.0, False)
        dataset.image_data, dataset.bucket_manager = {}, None
        dataset.batch_size, dataset.bucket_no_upscale = 1, args.bucket_no_upscale
        dataset.enable_bucket = args.enable_bucket
        if args.enable_bucket:
            least, most = dataset.adjust_min_max_bucket_reso_by_steps(
                (width, height), args.min_bucket_reso, args.max_bucket_reso, args.bucket_reso_steps
            )
            manager = train_util.BucketManager(
                args.bucket_no_upscale, (width, height), least, most, args.bucket_reso_steps
            )
            if not args.bucket_no_upscale:
                manager.make_buckets()
        else:
            manager = train_util.BucketManager(False, (width, height), None, None, None)
            manager.set_predefined_resos([(width, height)])
        for size in sizes:
            bucket, resized, _ = manager.select_bucket(*size)
            cases.append([resolution, text, *size, *map(int, bucket), *map(int, resized)])
    _dump("buckets.json", cases, "[resolution, options, w, h, bucket w, h, resized w, h]")


def blocks() -> None:
    """Weight, dims and alphas of every block by network_args, at dim 16 and alpha 8."""
    from networks import lora

    cases = []
    for is_sdxl, texts in ((False, SD_LISTS), (True, SDXL_LISTS)):
        for text in texts:
            given = dict(word.split("=", 1) for word in text.split())
            weights = lora.parse_block_lr_kwargs(is_sdxl, given)
            conv_dim = int(given["conv_dim"]) if "conv_dim" in given else None
            conv_alpha = float(given.get("conv_alpha", 1)) if conv_dim is not None else None
            sizes: Any = None
            if weights is not None or "block_dims" in given:
                lists = lora.get_block_dims_and_alphas(
                    is_sdxl,
                    given.get("block_dims"),
                    given.get("block_alphas"),
                    16,
                    8.0,
                    given.get("conv_block_dims"),
                    given.get("conv_block_alphas"),
                    conv_dim,
                    conv_alpha,
                )
                sizes = lora.remove_block_dims_and_alphas(is_sdxl, *lists, weights)
            cases.append([is_sdxl, text, weights, sizes, conv_dim, conv_alpha])
    about = "[sdxl, network_args, weights, [dims, alphas, conv dims, conv alphas] or null, "
    _dump("blocks.json", cases, about + "conv_dim, conv_alpha]")


def layers() -> None:
    """LoRA layers: max-norm before and after, and outputs with the masks of dropouts."""
    from networks import lora

    torch.manual_seed(3)
    tensors: dict[str, Tensor] = {}
    modules = {
        "linear": nn.Linear(6, 5),
        "pointwise": nn.Conv2d(6, 4, 1),
        "conv": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    }
    for limit in (0.5, 2.0, 50.0):
        pairs = []
        for name, module in modules.items():
            pair = lora.LoRAModule(name, module, 1.0, 3, 1.5)
            nn.init.normal_(pair.lora_up.weight)
            nn.init.normal_(pair.lora_down.weight)
            pairs.append(pair)
            for part, weight in _weights(pair).items():
                tensors[f"norm{limit}/{name}/{part}/before"] = weight.clone()
        network = lora.LoRANetwork.__new__(lora.LoRANetwork)
        nn.Module.__init__(network)
        for pair in pairs:
            network.add_module(pair.lora_name, pair)
        scaled, mean, most = network.apply_max_norm_regularization(limit, "cpu")
        tensors[f"norm{limit}/scaled,mean,most"] = torch.tensor([scaled, mean, most]).double()
        for pair in pairs:
            for part, weight in _weights(pair).items():
                tensors[f"norm{limit}/{pair.lora_name}/{part}/after"] = weight.clone()
    for name, module in modules.items():
        shape = (2, 3, 6) if name == "linear" else (2, module.in_channels, 6, 6)  # type: ignore[union-attr]
        inputs = torch.randn(shape)
        pair = lora.LoRAModule(name, module, 1.0, 4, 2.0, dropout=0.25, rank_dropout=0.5)
        nn.init.normal_(pair.lora_up.weight)
        pair.apply_to()
        pair.train()
        with torch.no_grad():
            hidden = pair.lora_down(inputs)
            elements = torch.rand_like(hidden) > 0.25
            ranks = torch.rand(2, 4)
            with _masked(elements, ranks):
                output = pair.forward(inputs)
        tensors |= {
            f"dropout/{name}/{key}": value.detach().clone()
            for key, value in {
                "weight": pair.org_forward.__self__.weight,
                "bias": pair.org_forward.__self__.bias,
                "down": pair.lora_down.weight,
                "up": pair.lora_up.weight,
                "inputs": inputs,
                "elements": elements.float(),
                "ranks": ranks,
                "output": output,
            }.items()
        }
    _save("layers.safetensors", tensors, layers.__doc__ or "")


@contextmanager
def _masked(elements: Tensor, ranks: Tensor) -> Iterator[None]:
    """Drop what the masks say, wherever torch would draw them."""
    before = nn.functional.dropout, torch.rand
    nn.functional.dropout = lambda x, p, **_: x * elements / (1 - p)  # type: ignore[assignment]
    torch.rand = lambda *_, **__: ranks  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.dropout, torch.rand = before


def _weights(pair: Any) -> dict[str, Tensor]:
    return {"down": pair.lora_down.weight.data, "up": pair.lora_up.weight.data}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
