"""What the importers of trainers share whose settings are a tree, and data sets a list in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench.cli.trainers.families import family, plain
from optbench.cli.trainers.folders import ImageFolder, place, words_of_links
from optbench.cli.trainers.imported import Translation, shipped, shown
from optbench.cli.trainers.optimizers import optimizers
from optbench.cli.trainers.options import READ_AT, Option, table
from optbench.errors import ConfigError, Problem, shorten


@dataclass(slots=True)
class Training:
    """What files ask of one trainer, as they are written."""

    trainer: str  # the table's name
    path: Path
    settings: Mapping[str, Any]  # nested
    datasets: Sequence[Mapping[str, Any]] = ()  # nested
    prompts: Sequence[Mapping[str, Any]] = ()


def flat(
    known: Mapping[str, Option], tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a tree; a table that is an option itself stays whole."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name not in known and isinstance(value, Mapping):
            yield from flat(known, value, f"{name}.")
        else:
            yield name, value


class TreeTranslation(Translation):
    """A training of a trainer that is no kohya; `datasets` have every option's value each."""

    prefix = "datasets"

    def __init__(self, training: Training) -> None:
        """Read what is written, each value as the table says.

        Raises:
            ConfigError: If values are of another type, all of them.
        """
        known = table(training.trainer)
        problems = [
            Problem(
                f"{self.prefix} in {training.path}",
                repr(one)[:60],
                "a table of settings for each folder of images",
                f"correct it in {training.path.name}",
            )
            for one in training.datasets
            if not isinstance(one, Mapping)
        ]
        unknown: list[str] = []
        given = _typed(known, training.settings, "", training.path, problems, unknown)
        listed = [
            _typed(known, one, f"{self.prefix}.", training.path, problems, unknown)
            for one in training.datasets
            if isinstance(one, Mapping)
        ]
        if problems:
            raise ConfigError(*problems)
        super().__init__(training.trainer, known, given)
        self.training = training
        self._side = 512  # of the resolution, for which buckets are made
        self.title = READ_AT[training.trainer][0]
        self.imported.lost += [
            f"{name}: no option of {self.title}" for name in dict.fromkeys(unknown)
        ]
        self.given_datasets = listed
        defaults = {
            name: option.default
            for name, option in known.items()
            if name.startswith(f"{self.prefix}.")
        }
        self.datasets = [
            {name.removeprefix(f"{self.prefix}."): v for name, v in (defaults | one).items()}
            for one in listed
        ]

    def _family(self, name: str, why: str) -> str:
        """Choose the base; a family that cannot be trained yet is refused in words.

        Returns:
            The family whose rules the other settings follow: that one, or sd15.
        """
        ours, words = family(name)
        self.imported.overrides.append(f"base={ours or plain(words)}")
        if ours is None:
            self.imported.refused.append(
                f"{why}: {words} cannot be trained here yet (bases are sd15, sd2, sdxl); all other "
                "settings are below, to be used with a base of those"
            )
        self.imported.overrides += ["dataset=folder", "prompts=folder"]
        return ours or "sd15"

    def _network(self, dim: int, alpha: float, *, conv: tuple[int, float] | None = None) -> None:
        """Set sizes, the same on both kinds of layers or as given."""
        self._set("network.dim", dim, *self.given)
        self._set("network.alpha", float(alpha), *self.given)
        if conv is not None:
            self._set("network.conv_dim", conv[0], *self.given)
            self._set("network.conv_alpha", float(conv[1]), *self.given)

    def _named_optimizer(self, written: str, given: Mapping[str, Any], option: str) -> str:
        """Choose the recipe that a trainer's name stands for, with its own defaults written out.

        Returns:
            The recipe.
        """
        named = optimizers(self.imported.trainer).get(written.lower())
        recipe = named.recipe if named else ""
        if not recipe:
            why = f"; {named.remark}" if named and named.remark else ""
            self.imported.lost.append(
                f"{option}={written}: no recipe of ours builds it{why}; AdamW stands here at its "
                "rates. Copy a file of conf/optimizer/ and name the class in it"
            )
            kept = {key: given[key] for key in ("weight_decay",) if key in given}
            self._set_optimizer("adamw", kept)
            return "adamw"
        assert named is not None
        if named.remark:
            self.imported.notes.append(f"{option}={written}: {named.remark}")
        args = {**named.args, **given}
        for name, why in shipped("optimizer", recipe).get("refused_args", {}).items():
            if name in args:
                self.imported.lost.append(f"{name}={shown(args.pop(name))} of {written}: {why}")
        if recipe == "adafactor" and args.get("relative_step") is True:
            recipe = "adafactor_auto"
        self._set_optimizer(recipe, args, target=named.target)
        return recipe

    def _rates(
        self, recipe: str, lr: float, *, unet: float | None = None, text: float | None = None
    ) -> None:
        """Set the rates of the parts that have one; 0 leaves a part untrained."""
        if recipe == "adafactor_auto":
            self.imported.ignored.append("the rates: Adafactor finds its own (relative_step)")
            return
        for part, rate in (("unet", unet), ("text_encoder", text)):
            if rate == 0:
                self._untrained(part, f"{part}: its rate is 0")
        self._set("optimizer.lr", float(lr), *self.given)
        for key, rate in (("unet_lr", unet), ("text_encoder_lr", text)):
            self._set(
                f"optimizer.{key}", None if rate in (None, lr, 0) else float(rate), *self.given
            )

    def _untrained(self, part: str, why: str) -> None:
        override = f"network.train_{part}=false"
        if override not in self.imported.overrides:
            self.imported.overrides.append(override)
            self.imported.notes.append(f"{override}: {why}")

    def _clip(self, norm: float | None, name: str) -> None:
        self._set("train.max_grad_norm", float(norm or 0), name)

    def _folders(self, folders: Sequence[ImageFolder]) -> None:
        """Name the folders of images, and say what to type where several have to become one."""
        placed = place(folders, beside=f"{self.training.path.stem}-data")
        for key, value in placed.settings.items():
            self._set(key, value, *self.given)
            if not self.given:
                self.imported.overrides.append(f"{key}={value}")
        if not any(not folder.is_regularization for folder in folders):
            self.imported.notes.append("dataset.dir: give the images, the file names none")
        if placed.commands:
            self.imported.notes.append(words_of_links(placed.commands))

    def _one_of(self, name: str) -> Any:
        """Return what all data sets have for an option; where they differ, the first one's.

        What the others have is said.
        """
        values = [one[name] for one in self.datasets]
        others = [value for value in values[1:] if value != values[0]]
        if others:
            self.imported.lost.append(
                f"{self.prefix}.{name}: {shorten([shown(value) for value in values])}, one for "
                "each folder; one for all here, the first"
            )
        return values[0] if values else self.options[f"{self.prefix}.{name}"].default

    def _square(self, side: float, multiple: int = 8) -> None:
        """Set the pixel budget to a square of this side, a multiple of what buckets allow."""
        whole = max(64, round(side / multiple) * multiple)
        self._set("dataset.resolution", [whole, whole], *self.given)
        self._side = whole
        if not math.isclose(whole, side):
            self.imported.notes.append(f"resolution: {side:g} becomes {whole}")

    def _buckets(self, step: int, *, enabled: bool, upscale: bool = True) -> None:
        """Let every image find its own bucket, as the others choose among fixed shapes."""
        self._set("dataset.enable_bucket", enabled, *self.given)
        self._set("dataset.bucket_no_upscale", enabled and not upscale, *self.given)
        if enabled:
            self.imported.lost.append(
                "buckets: that trainer chooses among other shapes; optbench plan lists those here"
            )
            self._set("dataset.bucket_reso_steps", step, *self.given)
            if upscale:
                side = self._side
                self._set("dataset.min_bucket_reso", max(64, side // 4 // step * step), *self.given)
                self._set("dataset.max_bucket_reso", side * 2 // step * step, *self.given)

    def _say_datasets(self) -> None:
        """Say what data sets ask for that is not here."""
        for one in self.given_datasets:
            for name, value in one.items():
                option = self.options[name]
                if value in (option.default, "", [], {}, None) or value is False:
                    continue
                if option.how == "missing":
                    remark = f"; {option.remark}" if option.remark else ""
                    sentence = f"{name}={shown(value)}: {option.meaning}{remark}"
                    if sentence not in self.imported.lost:
                        self.imported.lost.append(sentence)

    def _wandb(self, is_on: bool, project: str | None, run: str | None, *names: str) -> None:
        if is_on:
            self.imported.overrides.append("tracker.log_with=[wandb]")
            if project:
                self._set("tracker.log_tracker_name", project, *names)
            if run:
                self._set("tracker.run_name", run, *names)

    def _finish(self) -> None:
        """Say the rest, and switch off what no other trainer switches on by itself."""
        self._set_the_rest()
        self._say_datasets()
        self._say_others()


def _typed(
    known: Mapping[str, Option],
    tree: Mapping[str, Any],
    prefix: str,
    path: Path,
    problems: list[Problem],
    unknown: list[str],
) -> dict[str, Any]:
    """Return a tree's options by dotted name, parsed; what is none goes to `unknown`."""
    typed: dict[str, Any] = {}
    for name, value in flat(known, tree, prefix):
        option = known.get(name)
        if option is None:
            if not name.rpartition(".")[2].startswith("_"):
                unknown.append(name)
            continue
        if value is None and option.default is not None and option.ours != "train.max_grad_norm":
            continue  # as if it were not there; of the norm it means no clipping
        try:
            typed[name] = option.parse(value)
        except ValueError as error:
            problems.append(
                Problem(
                    f"{name} in {path}",
                    str(error),
                    f"a value of type {option.type}, as that trainer wants it",
                    f"correct it in {path.name}",
                )
            )
    return typed
