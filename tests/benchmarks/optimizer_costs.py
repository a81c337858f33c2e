"""What every recipe costs: seconds of an update, and the bytes it keeps besides the weights.

Prints them for all recipes on the shapes of a LoRA of dim 16 on SD1.x. With `--write` they go to
docs/optimizer-costs.csv, and docs/optimizers.md is made from them and conf/optimizer/; with
`--page` the page alone, from the figures there are. Asserts nothing.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from optbench.config.build import build_recipe
from optbench.config.compose import compose_recipe
from optbench.optim import telemetry, toy_task
from optbench.optim.build import build_optimizer
from optbench.optim.recipes import departures
from optbench.records import ParameterGroup, Part
from optbench.schema import OptimizerOptions

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "conf" / "optimizer"
COSTS = ROOT / "docs" / "optimizer-costs.csv"
PAGE = ROOT / "docs" / "optimizers.md"
BASELINE = "adamw"
DIM = 16
NUM_UPDATES = 10  # timed together, because some classes do more in every tenth update
NUM_REPEATS = 3  # the fastest counts: a busy machine only ever adds

_KINDS = {
    "manual": "manual: you set it",
    "multiplier": "semi-automatic: d x lr",
    "automatic": "automatic: no lr",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one recipe was measured to cost."""

    recipe: str
    version: str
    update_seconds: float
    state_bytes_per_weight: float
    share_8bit: float


def main() -> None:
    """Measure and print, measure and write, or only write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures, make the page")
    parser.add_argument("--page", action="store_true", help="make the page; measure nothing")
    asked = parser.parse_args()
    recipes = shipped_recipes()
    if not asked.page:
        torch.set_num_threads(1)
        measured = []
        for recipe in recipes:
            measured.append(measure(recipe))
            print(measured[-1])
        if asked.write:
            write_costs(measured)
    if asked.page or asked.write:
        PAGE.write_text(page(recipes, read_costs()), encoding="utf-8")


def shipped_recipes() -> list[OptimizerOptions]:
    """Return every recipe of conf/optimizer/ at the rates for SD1.x; other names left out."""
    found = [build_recipe(compose_recipe(file)) for file in sorted(RECIPES.glob("*.yaml"))]
    return list({recipe.name: recipe for recipe in found}.values())


@functools.lru_cache(maxsize=1)
def lora_shapes(dim: int) -> list[tuple[Part, tuple[int, ...]]]:
    """Return the part and shape of every tensor of a LoRA on the attention layers of SD1.x."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        )
    kinds: dict[Part, tuple[nn.Module, tuple[str, ...]]] = {
        "text_encoder": (text_encoder, ("CLIPAttention", "CLIPMLP")),
        "unet": (unet, ("Transformer2DModel",)),
    }
    shapes: list[tuple[Part, tuple[int, ...]]] = []
    for part, (model, classes) in kinds.items():
        for block in model.modules():
            if type(block).__name__ not in classes:
                continue
            for layer in block.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    outputs, inputs, *kernel = layer.weight.shape
                    shapes.append((part, (dim, inputs, *kernel)))
                    # Behind a 3x3 convolution the second one is 1x1; here all are.
                    shapes.append((part, (outputs, dim, *kernel)))
    return shapes


def measure(recipe: OptimizerOptions) -> Cost:
    """Return what one recipe costs over `NUM_UPDATES` updates, gradients given."""
    draw = torch.Generator().manual_seed(1)
    parameters: dict[Part, list[nn.Parameter]] = {"unet": [], "text_encoder": []}
    for part, shape in lora_shapes(DIM):
        one = nn.Parameter(torch.randn(shape, generator=draw) / DIM)
        one.grad = torch.randn(shape, generator=draw) / 1000
        parameters[part].append(one)
    groups = [
        ParameterGroup(name=part, part=part, lr_weight=1.0, parameters=listed)
        for part, listed in parameters.items()
    ]
    built = build_optimizer(
        recipe,
        groups,
        lr_mult=1.0,
        lr_scheduler=toy_task.schedule_for(recipe),
        total_steps=(NUM_REPEATS + 1) * NUM_UPDATES,
    )
    seconds = []
    for _ in range(NUM_REPEATS + 1):  # the first one also makes the state
        started = time.perf_counter()
        for _ in range(NUM_UPDATES):
            built.step(lambda: 0.5)
        seconds.append((time.perf_counter() - started) / NUM_UPDATES)
    size = telemetry.state_size(built.optimizer)
    return Cost(
        recipe=recipe.name,
        version=importlib.metadata.version(recipe.package).partition("+")[0],
        update_seconds=min(seconds[1:]),
        state_bytes_per_weight=size.num_bytes / sum(one.numel() for one in built.parameters()),
        share_8bit=size.share_8bit,
    )


def write_costs(costs: Sequence[Cost]) -> None:
    """Keep the figures beside the page they are for."""
    with COSTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Cost.__slots__)
        for one in costs:
            writer.writerow(
                (
                    one.recipe,
                    one.version,
                    f"{one.update_seconds:.6f}",
                    f"{one.state_bytes_per_weight:.3f}",
                    f"{one.share_8bit:.4f}",
                )
            )


def read_costs() -> dict[str, Cost]:
    """Return the figures that were measured last, by recipe."""
    with COSTS.open(encoding="utf-8", newline="") as file:
        return {
            row["recipe"]: Cost(
                recipe=row["recipe"],
                version=row["version"],
                update_seconds=float(row["update_seconds"]),
                state_bytes_per_weight=float(row["state_bytes_per_weight"]),
                share_8bit=float(row["share_8bit"]),
            )
            for row in csv.DictReader(file)
        }


def page(recipes: Sequence[OptimizerOptions], costs: dict[str, Cost]) -> str:
    """Return docs/optimizers.md."""
    baseline = costs[BASELINE].update_seconds
    lines = [
        "# The optimizers",
        "",
        "Made by `make docs` from conf/optimizer/ and docs/optimizer-costs.csv: change those.",
        "",
        "**Rate** is what you set: a rate (manual), a factor of the step size d that the class "
        "estimates itself (semi-automatic, usually 1), or nothing (automatic). Default rates are "
        "for SD1.x; the embedded base multiplies those of manual recipes by `base.lr_scale`, or "
        "any recipe's by what was measured for it (`base.lr_scales`). "
        "**State** is memory besides the weights, and the share of the weights whose state is in "
        "8 bits. **Update** is the time of one update relative to `adamw`, "
        f"{baseline * 1e3:.1f} ms for the 528 tensors of a LoRA of dim {DIM} on SD1.x on one CPU "
        f"thread: the fastest of {NUM_REPEATS} times {NUM_UPDATES} updates. A training step on a "
        "CPU takes seconds at that size, so updates hardly count there; on a GPU the order of "
        "the many-pass classes stays, the figures do not.",
        "",
        "| `optimizer=` | class | package | rate | default lr | state, bytes a weight | update |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        cost = costs[recipe.name]
        share = f" ({cost.share_8bit:.0%} in 8 bits)" if cost.share_8bit else ""
        lines.append(
            f"| [{recipe.name}](#{recipe.name}) | `{recipe.target}` | {recipe.package} "
            f"{cost.version} | {_KINDS[recipe.traits.lr_role]} | {_rates(recipe)} | "
            f"{cost.state_bytes_per_weight:.3g}{share} | "
            f"{_times(cost.update_seconds / baseline)} x |"
        )
    for recipe in recipes:
        lines += ["", *_section(recipe)]
    return "\n".join(lines) + "\n"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _rates(recipe: OptimizerOptions) -> str:
    if recipe.lr is None:
        return "none"
    text_encoder = recipe.text_encoder_lr
    is_one = text_encoder is None or text_encoder == recipe.lr
    return f"{recipe.lr:g}" if is_one else f"{recipe.lr:g}, text encoder {text_encoder:g}"


def _section(recipe: OptimizerOptions) -> list[str]:
    arguments = ", ".join(f"{name}={value}" for name, value in recipe.args.items())
    lines = [
        f"## {recipe.name}",
        "",
        f"{recipe.paper}.",
        "",
        f"- Arguments (`optimizer.args.*`): {f'`{arguments}`' if arguments else 'none'}",
    ]
    lines += [f"- Departs: {sentence}." for sentence in departures(recipe)]
    lines += [f"- Note: {recipe.note}"] if recipe.note else []
    lines += [f"- Refused: `{name}`: {reason}." for name, reason in recipe.refused_args.items()]
    return lines


if __name__ == "__main__":
    main()
