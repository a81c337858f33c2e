"""Write docs/coming-from.md from other trainers' options: `python -m tools.coming_from`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from optbench.cli.trainers.optimizers import optimizers
from optbench.cli.trainers.options import READ_AT, Option, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "coming-from.md"
_INTRODUCTION = """\
# Coming from another trainer

You have a training that works, or nearly. Two commands bring it here and back:

    .venv/bin/optbench import FILE ...                 # prints our command; --yaml: a sweep's file
    .venv/bin/optbench export runs/SWEEP/RUN --for=onetrainer > train.sh

`import` tells by a file's content whose it is. Data sets and prompts are read from the files it names, if they lie
beside it, or from files named behind it. It prints our command, and on the standard error every option that

* is to be **looked at**: a placeholder, a folder of links to make, a number that counts something else there;
* has **no equivalent here**: its name, and what it would have done;
* is **not looked at** there either, so it is left out;
* was not given, and whose default there is **written out**, since ours is another.

A base that cannot be trained here yet is **refused** by its family's name (the exit code is 2), with all else translated,
so that you see what the same settings are with SD1.5, SD2 or SDXL.

`export` prints a shell script for the trainer named: it writes the files that trainer takes and starts it. What it cannot
express stands in comments on top. The same settings never give the same weights there: order, noise and timesteps are
drawn otherwise.

What is better here, whichever you come from: every run of a sweep meets the same images, noise and seeds; several seeds say
how far luck goes; one page compares all of them; nothing is ignored in silence.

The tables are made from `src/optbench/cli/trainers/tables/`: `make docs`.
"""
SECTIONS: dict[str, tuple[str, str, str]] = {
    "kohya": (
        "kohya's sd-scripts",
        "Shell, PowerShell and batch scripts, TOML files, and files for `--dataset_config`.",
        """\
Most names are the same here, and most numbers: losses, rates, buckets and captions are held against sd-scripts' own
functions in `tests/parity/`. Defaults are not the same. Every option, with both defaults: [kohya-names.md](kohya-names.md).

Missing here: masked loss, LoRA+, weighted captions, fp8, several GPUs for one run, LoHa and LoKr (they can be rendered).""",
    ),
    "kohya-gui": (
        "kohya_ss, the GUI",
        "Its JSON: presets and saved configurations.",
        """\
`epoch` counts where `max_train_epochs` is 0, `lr_warmup` is percent, `LoRA_type: Standard` ignores the sizes of
convolutions; all as the GUI does it. `additional_parameters` are read like a command.""",
    ),
    "lora-easy": (
        "LoRA_Easy_Training_Scripts",
        "Its TOML, with one or several subsets.",
        """\
`warmup_ratio` is a share of all updates, as `lr_scheduler.warmup_steps` below 1 is here. Its own schedules
(warm restarts of cosine and REX) and optimizers (Compass, LPFAdamW) have no equivalent.""",
    ),
    "musubi": (
        "musubi-tuner",
        "Command lines, TOML files, and the TOML of data sets.",
        """\
Its families cannot be trained here yet: the base is refused by name. Names are kohya's; a text encoder is never trained, so
`network.train_text_encoder=false`. `timestep_sampling`, `discrete_flow_shift` and `weighting_scheme` belong to flow
models and have no equivalent. An exported script leaves PROGRAM, DIT and NETWORK to you.""",
    ),
    "onetrainer": (
        "OneTrainer",
        "Configurations and presets (JSON), with concepts and samples inside or beside; LoRA files with the configuration in them.",
        """\
| there | here |
|---|---|
| `learning_rate_warmup_steps` above 1 counts batches | updates: divided by `gradient_accumulation_steps` |
| `learning_rate_scaler` multiplies rates by a root | the rates it comes to |
| `COSINE_WITH_RESTARTS` goes down and up again | `cosine_with_min_lr` with twice the cycles |
| `COSINE_WITH_HARD_RESTARTS` | `cosine_with_restarts` |
| `text_encoder_layer_skip` 0, 1 | `train.clip_skip` 1, 2 |
| `layer_filter_preset` full: convolutions too | `network.conv_dim` and `conv_alpha` as the others |
| `balancing` with REPEATS | repeats; with SAMPLES: said, not translated |
| an optimizer's arguments that are not given: its own table of defaults | written out |

Better here: a seed, paired validation, several images for validation at several timesteps instead of one.
Missing here: masked training, EMA, prior prediction, LoHa, LoKr and OFT, most families.""",
    ),
    "ai-toolkit": (
        "ai-toolkit",
        "Jobs in YAML or JSON.",
        """\
| there | here |
|---|---|
| `gradient_accumulation_steps`: a step is a batch | `train.max_steps` divided by it |
| `gradient_accumulation`: a step is an update | `train.max_steps` as it is |
| no epochs | `train.epochs` as large as the steps, which decide |
| `optimizer: adamw` and others with `eps` 1e-6 | `optimizer.args.eps=1e-06` |
| `prodigy` with a rate below 0.1: takes 1 | 1 |
| `linear_alpha` 0 | the rank |
| several resolutions: a copy of the data set for each | the largest, and it is said |
| `shuffle_tokens` shuffles kept tags as well | `dataset.keep_tokens=0`, and it is said |

`dadaptationadam` there builds D-Adaptation's Lion with an argument which that class refuses; it is not translated.
Better here: a seed, epochs, regularization images balanced as kohya's trainer does, named recipes.
Missing here: EMA, masks, differential output preservation, quantized bases, LoKr, most families.""",
    ),
    "simpletuner": (
        "SimpleTuner",
        "`config.json`, TOML or `config.env`, with `multidatabackend.json` and the prompt library.",
        """\
| there | here |
|---|---|
| `repeats: 9` are nine further uses | `dataset.num_repeats=10` |
| `resolution` with `resolution_type: area` is megapixels | the side of such a square |
| `lora_alpha` not given | the rank |
| `optimizer: prodigy` is Prodigy with ScheduleFree | `optimizer=prodigyplus` |
| `grad_clip_method: value`, its default, cuts every gradient | no clipping, and it is said |
| `lr_scheduler` cosine, sine, restarts: waves as long as `lr_warmup_steps` | constant, and it is said |
| a LoRA on to_q, to_k, to_v, to_out alone | on all layers of the transformer blocks, and it is said |
| no LoRA of text encoders | `network.train_text_encoder=false` |

Better here: LoRA on convolutions and text encoders, epochs and steps that mean one thing.
Missing here: EMA, LyCORIS, quantized bases, several GPUs, most families.""",
    ),
    "diffusion-pipe": (
        "diffusion-pipe",
        "The main TOML and that of data sets.",
        """\
Alpha is always the rank. `[optimizer]` is handed to the class, and so it is here. `lr_scheduler: cosine` ends at 1e-6 whatever the
rate is; here it ends at that share of yours. Images that do not fill a batch are left out there and make a smaller one here.
Missing here: masks, pipeline parallelism, block swapping, LoKr, all families but SDXL.""",
    ),
    "peft": (
        "PEFT's image comparison",
        "`adapter_config.json` and `training_params.json`, together or alone.",
        """\
It compares methods with one optimizer, one seed and four images; here optimizers and settings are compared with several seeds.
`lora_dropout` drops a layer's inputs, `network.dropout` the LoRA's inner values: it is not translated.""",
    ),
    "diffusers": (
        "diffusers' example scripts",
        "Export only: `train_text_to_image_lora.py` and `train_text_to_image_lora_sdxl.py`.",
        """\
Alpha is the rank, AdamW the one optimizer, every image a square, and captions come from `metadata.jsonl`, which our
`dataset.dir` reads as well.""",
    ),
}
_LISTED_ELSEWHERE = ("kohya", "kohya-gui")


def page() -> str:
    """Return the whole page."""
    lines = [_INTRODUCTION, *_contents(), ""]
    for name, (title, read, words) in SECTIONS.items():
        lines += [f"## {title}", "", f"{read} Read at {READ_AT[name][1]}.", "", words, ""]
        if name not in _LISTED_ELSEWHERE:
            lines += [*_options(name), *_missing(name), *_optimizers(name)]
    return "\n".join(lines).rstrip() + "\n"


def _contents() -> Iterator[str]:
    yield "| you have | section |"
    yield "|---|---|"
    for title, read, _ in SECTIONS.values():
        anchor = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_")
        yield f"| {read} | [{title}](#{anchor.replace(' ', '-')}) |"
    yield (
        "| any LoRA file with `ss_*` metadata (ours, kohya's, and those made around it) | "
        "`import FILE.safetensors` |"
    )


def _options(name: str) -> Iterator[str]:
    yield "| their word | default | ours | means |"
    yield "|---|---|---|---|"
    for option in table(name).values():
        is_argument = option.ours == "optimizer.args" and name == "onetrainer"
        if option.how in ("same", "read") and option.ours and not is_argument:
            yield (
                f"| `{option.name}` | {_default(option)} | `{option.ours}` | {_cell(option.meaning)} |"
            )
    yield ""


def _default(option: Option) -> str:
    if option.default in (None, "", [], {}):
        return ""
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    return f"`{_cell(str(option.default))}`"


def _missing(name: str) -> Iterator[str]:
    by_meaning: dict[str, list[str]] = {}
    for option in table(name).values():
        if option.how == "missing":
            by_meaning.setdefault(option.meaning, []).append(f"`{option.name}`")
    if by_meaning:
        yield "Not here, though it changes weights:"
        yield ""
        for meaning, names in by_meaning.items():
            yield f"* {', '.join(names)}: {_cell(meaning)}"
        yield ""


def _optimizers(name: str) -> Iterator[str]:
    named = list(optimizers(name).values())
    if not named:
        return
    yield "| their optimizer | our recipe | note |"
    yield "|---|---|---|"
    for one in named:
        if one.recipe:
            recipe = f"`{one.recipe}`" + (f" with `{one.target}`" if one.target else "")
            yield f"| `{one.name}` | {recipe} | {_cell(one.remark)} |"
    yield ""
    without = [f"`{one.name}`" for one in named if not one.recipe]
    if without:
        yield f"Without a recipe of ours: {', '.join(without)}."
        yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
