"""Write docs/kohya-names.md from the table of kohya's options: `python -m tools.kohya_names`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

from optbench.cli.trainers.kohya import option_names
from optbench.cli.trainers.options import Option, options
from optbench.storage import resources

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kohya-names.md"
_SHIPPED = {
    "base": "sd15",
    "dataset": "folder",
    "network": "lora",
    "train": "default",
    "loss": "default",
    "lr_scheduler": "cosine",
    "optimizer": "adamw",
    "tracker": "default",
}
_INTRODUCTION = """\
# Kohya's options and ours

Every option of kohya's trainer (sd-scripts, `train_network.py` and `sdxl_train_network.py` of February 2026), what it
is here, and both defaults. `python -m optbench import FILE` does this table for a shell, batch or PowerShell script, a
TOML file or a preset of the GUI, and `export RUN` does it backwards. Import writes out every default of kohya's that is
not ours, leaves out what kohya's trainer would not look at, and says both, and whatever has no equivalent.

Names and meanings are the same where nothing is said; **defaults are not**: the two columns show them. Here a setting
without effect is refused (huber_c without huber, keep_tokens without shuffling); there it is ignored.
`loss=min_snr`, `loss=huber` and `loss=multires` are usual choices under one name; `null` switches an option off.

This page is made from `src/optbench/cli/trainers/tables/kohya.csv`: `make docs`.
"""
_MORE = """\
## What decides a run's schedule, optimizer and sizes

| there | here |
|---|---|
| `--lr_scheduler cosine_with_restarts` without cycles: 1 | 3 cycles; imported as 1 |
| `--lr_scheduler polynomial` without power: 1; its last rate 1e-7 | power 2, last rate a share of the first; imported as 1 and 1e-7 |
| `--lr_scheduler warmup_stable_decay` without `--lr_decay_steps`: no decay | the last fifth; imported as 0 |
| a class of schedulefree: the schedule and its warm-up are ignored | they are used, and that is said; imported as `constant` |
| `AdaFactor` (relative steps): rates and schedule are ignored | `adafactor_auto`, which takes no rates; imported so |
| an optimizer's arguments that are not given: the class's own | the recipe's; imported as the class's own |
| `--network_args down_lr_weight=...` too short: filled up with 1; an empty weight: 0 | a number for each block; imported so |
| `--network_args conv_block_dims=...` without block_dims or weights of blocks: passed over | 3x3 layers get a LoRA, and it is said; exported with block_dims |
| `--dim_from_weights` with a dropout: nothing is dropped | dropped, and said; imported without |
| `--max_train_steps` of a run whose epochs give fewer: the epochs go on | whichever ends first |
| `--noise_offset_random_strength`, `--ip_noise_gamma_random_strength`, multires noise: one draw a batch | one an image |
| without `--cache_latents` every use draws a new sample of the VAE's distribution | one sample, drawn once |

## What differs in files and networks

| | kohya | here |
|---|---|---|
| `photo.Jpg` | endings are all capitals or all small letters | trained on, and said |
| a byte order mark before a caption | stays in the caption | is no letter |
| a folder named `10` | trained on, without class words | left alone, and said |
| a caption in another encoding than UTF-8 | an error in Python's words | refused by the file's name and its encoding |
| SD2's `proj_in`, `proj_out` | from one file 1x1 convolutions, from a folder linear | the same; files of either kind are read with either base |
| captions' characters | transformers' CLIPTokenizer with ftfy | the same ids (transformers 4.54.1, ftfy 6.1.1) |

Why noise and loss differ where they do: [decisions/0008](decisions/0008-one-noise-schedule.md).
"""
_TITLES = {
    "base": "The base model (`base`)",
    "dataset": "Images and captions (`dataset`)",
    "train": "Steps, memory and precision (`train`)",
    "loss": "Loss and noise (`loss`)",
    "network": "The LoRA (`network`)",
    "optimizer": "Optimizer and rates (`optimizer`)",
    "lr_scheduler": "Schedule (`lr_scheduler`)",
    "tracker": "Trackers, prompts, seed",
}


def page() -> str:
    """Return the whole page."""
    by_section: dict[str, list[Option]] = {title: [] for title in _TITLES}
    others: dict[str, list[Option]] = {"missing": [], "unneeded": []}
    for option in options().values():
        section = option.ours.partition(".")[0]
        if option.how in others:
            others[option.how].append(option)
        else:
            by_section[section if section in _TITLES else "tracker"].append(option)
    lines = [_INTRODUCTION]
    for section, members in by_section.items():
        lines += [f"## {_TITLES[section]}", "", "| kohya | there | ours | here | means |"]
        lines += ["|---|---|---|---|---|", *map(_row, members), ""]
        if section == "network":
            lines += ["What `--network_args` takes:", "", "| kohya | ours |", "|---|---|"]
            lines += [f"| `{k}` | `{ours}` |" for k, ours in option_names.NETWORK_ARGS.items()]
            lines += [""]
    lines += [
        _MORE,
        "## What there is not here",
        "",
        "| kohya | means | instead |",
        "|---|---|---|",
    ]
    lines += [
        f"| `--{o.name}` | {_cell(o.meaning)} | {_cell(o.remark)} |" for o in others["missing"]
    ]
    lines += ["", "## What changes no weight, or is always so here", "", "| kohya | because |"]
    lines += ["|---|---|", *_reasons(others["unneeded"])]
    return "\n".join(lines) + "\n"


def _row(option: Option) -> str:
    default = "off" if option.default is False else ""
    if option.default not in (None, "") and option.default is not False:
        default = f"`{_cell(str(option.default))}`"
    ours = f"`{option.ours}`" if option.ours else ""
    return f"| `--{option.name}` | {default} | {ours} | {_ours(option)} | {_cell(option.meaning)} |"


def _ours(option: Option) -> str:
    """Return our default as conf/ has it, or nothing where it depends on something else."""
    section, _, key = option.ours.partition(".")
    if not key or section not in _SHIPPED:
        return ""
    shipped = OmegaConf.load(resources.conf_dir() / section / f"{_SHIPPED[section]}.yaml")
    if key not in shipped or OmegaConf.is_interpolation(shipped, key):
        return ""
    if OmegaConf.is_missing(shipped, key) or shipped[key] is None:  # type: ignore[index]
        return ""
    value = shipped[key]  # type: ignore[index]
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{_cell(str(value))}`"


def _reasons(members: list[Option]) -> Iterator[str]:
    by_remark: dict[str, list[str]] = {}
    for option in members:
        by_remark.setdefault(option.remark, []).append(f"`--{option.name}`")
    for remark, names in by_remark.items():
        yield f"| {', '.join(names)} | {_cell(remark)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
