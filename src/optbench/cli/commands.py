"""The commands of `optbench`: the module of each, and what its help says.

Read by the dispatcher and by the help, so it imports nothing that takes time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


# Flags of Hydra's whose value is the next word, so that it is not taken for a command's name.
_FLAGS_WITH_VALUE = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
    "--experimental-rerun",
    "--info",
    "-i",
)


def is_file(word: str) -> bool:
    """Return whether a word with an equals sign in it is the name of something on the disk."""
    import os

    return os.path.lexists(word)  # noqa: PTH - False where the name is too long, no error


def split_bare_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the bare words - neither flag nor override nor a flag's value - and all the others."""
    bare_words: list[str] = []
    others: list[str] = []
    previous = ""
    for argument in arguments:
        is_override = argument.startswith(("-", "~", "+")) or (
            "=" in argument and not is_file(argument)
        )
        (others if is_override or previous in _FLAGS_WITH_VALUE else bare_words).append(argument)
        previous = argument
    return bare_words, others


class CommandInfo(NamedTuple):
    """One command."""

    module: str  # has `main(arguments) -> exit code`
    line: str  # what it does, in one line of the overview
    usage: str  # what follows the command's name
    about: str
    examples: tuple[tuple[str, str], ...] = ()  # what it does, and the words behind `optbench`
    config: str | None = None  # the file of conf/ that holds its settings
    groups: tuple[str, ...] | None = None  # the config groups it takes; None: all
    sweeps: str | None = None  # whose named sweeps it takes: "" for trainings


COMMANDS: dict[str, CommandInfo] = {
    "train": CommandInfo(
        module="optbench.cli.train",
        line="train one LoRA per combination of settings, then build the report",
        usage="[-m] [sweep=NAME] [group=option] [key=value] ...",
        about=(
            "Trains one LoRA per combination of settings on identical images, noise and seeds, "
            "renders the same prompts from each, and builds one report. The word `train` may be "
            "left out. Values with commas make a sweep with -m. The same command again skips "
            "finished runs and resumes interrupted ones."
        ),
        examples=(
            ("One run", "optimizer=lion network.dim=32"),
            ("A sweep: every optimizer at every dim", "-m optimizer=adamw,lion network.dim=16,32"),
            ("A named sweep", "sweep=demo"),
            (
                "Images and checkpoint of your own",
                "base=sd15 base.path=MODEL dataset=folder dataset.dir=DIR prompts=folder "
                "\"prompts.prompts.a.text='myword, 1girl, standing'\"",
            ),
            ("One run's complete config", "--cfg job network.dim=32"),
        ),
        config="config",
        sweeps="",
    ),
    "plan": CommandInfo(
        module="optbench.cli.plan",
        line="what a training would run: hours, disk, and every problem",
        usage="[-m] [sweep=NAME] [group=option] [key=value] ...",
        about=(
            "Takes the arguments of a training and says what it would run: runs, steps, hours, "
            "disk, images per bucket, and everything that is wrong with the settings. Trains "
            "nothing, writes nothing and loads no weights."
        ),
        examples=(
            ("Before a sweep", "plan -m optimizer=adamw,lion network.dim=16,32"),
            ("Before a named one", "plan sweep=optimizers"),
        ),
        config="config",
        sweeps="",
    ),
    "report": CommandInfo(
        module="optbench.cli.report",
        line="build the report of a folder of runs again, or serve it",
        usage="[RUNS_DIR ...] [--no-goal] [--serve [--port N]] [--sheet rows=AXIS,columns=AXIS]",
        about=(
            "Builds tables, sheets and the page again from the files of a sweep, or of every "
            "sweep in a folder (without one: runs). Trains nothing and needs no torch. A training "
            "renews its page by itself. With --no-goal the page shows no training images, now and "
            "whenever it is built again. With --serve the page is served to this machine alone, "
            "and the line for ssh is printed that opens it on another one. With --sheet it draws "
            "one PNG: the axes are run, epoch, prompt, seed, size or a setting that was varied; "
            "all others take one value, as in epoch=4."
        ),
        examples=(
            ("One sweep", "report runs/demo"),
            ("All of them", "report"),
            ("From the browser of another machine", "report runs/demo --serve"),
            ("A table of images", 'report runs/demo --sheet "rows=run,columns=epoch,prompt=a"'),
        ),
    ),
    "share": CommandInfo(
        module="optbench.cli.share",
        line="a report as one HTML file with its images inside, and a PNG of them",
        usage="RUNS_DIR [--training-images | --vote]",
        about=(
            "Writes the report of one sweep as one HTML file of a few MB that opens by double "
            "click, and a PNG of the last epoch's images, into the folder `share` of the sweep. "
            "Weights, tables and places on this machine stay out; so do training images, unless "
            "--training-images asks for the few small ones that the page shows. --vote writes one "
            "HTML file in which others vote blindly instead: it sends nothing, and `optbench "
            "report` counts the JSON file that it returns."
        ),
        examples=(("", "share runs/demo"), ("", "share --vote runs/demo")),
    ),
    "render": CommandInfo(
        module="optbench.cli.render.command",
        line="images from finished LoRA files, as sheets: an X/Y/Z plot",
        usage="LORA_OR_RUN ... [x=AXIS] [y=AXIS] [z=AXIS] [key=value] ...",
        about=(
            "Renders images with finished LoRA files, ours or anyone's (LoRA, LoCon, DoRA, LoHa, "
            "LoKr), and puts them on sheets. The files are only read, and an image that exists is "
            "not rendered again."
        ),
        examples=(
            ("A LoRA beside the base model", "render my.safetensors base=sd15 base.path=MODEL"),
            ("Every epoch of a run", "render runs/single/RUN y=epoch"),
            ("Strengths", "render my.safetensors 'y={strength:[0,0.5,1]}'"),
            (
                "Samplers and steps",
                "render my.safetensors 'x={steps:[10,20,30]}' "
                "'y={sampler:[Euler a,DPM++ 2M Karras]}'",
            ),
            ("Other words in the prompts", "render my.safetensors 'y={sr:[smile,angry,crying]}'"),
            (
                "Several LoRAs in one image",
                "render a.safetensors b.safetensors y=null "
                "'prompts.prompts.a.text=\"1girl <lora:a:0.8> <lora:b:0.5>\"'",
            ),
        ),
        config="plot",
    ),
    "resize": CommandInfo(
        module="optbench.cli.resize.command",
        line="smaller or merged LoRA files, and what every layer lost",
        usage="source=LORA_OR_RUN [-m] [sweep=NAME] [key=value] ...",
        about=(
            "Writes smaller LoRA files (or merges several), as kohya's resize_lora.py does, and "
            "reports what every layer lost, with images and validation losses beside the "
            "original's. The source files are only read."
        ),
        examples=(
            ("One file", "resize source=big.safetensors new_dim=32"),
            ("Every epoch of a run", "resize source=runs/single/RUN new_dim=8"),
            ("A sweep", "resize -m source=big.safetensors method=sv_ratio param=2,5,8"),
            ("A named sweep", "resize source=big.safetensors sweep=resize_ratio"),
            (
                "A merge",
                "resize 'source=[a.safetensors,b.safetensors]' 'weights=[0.7,0.3]' new_dim=32",
            ),
        ),
        config="resize",
        sweeps="resize",
    ),
    "regularize": CommandInfo(
        module="optbench.cli.regularize",
        line="class (regularization) images, made by the base model",
        usage="[-m] [class_words=WORDS] [key=value] ...",
        about=(
            "Lets the base model make images of a class, to train beside a character's own so "
            "that the class stays as it was (prior preservation, arXiv:2208.12242). The same "
            "command again resumes, and never writes over an image."
        ),
        examples=(
            ("100 of a girl", "regularize base=sd15 base.path=MODEL class_words=girl"),
            ("Two classes", "regularize -m class_words=girl,boy num_pictures=50"),
            ("Then train with them", "dataset.reg_dir=regularization ..."),
        ),
        config="regularize",
    ),
    "metrics": CommandInfo(
        module="optbench.cli.metrics",
        line="measure the images of finished runs",
        usage="[RUNS_DIR ...] [metric=OPTION] [metric.KEY=VALUE] ...",
        about=(
            "Measures the images of runs from their files (without a folder: runs), again only "
            "where an image or a metric changed. Trains and renders nothing. docs/metrics.md says "
            "what the numbers mean; build the report again afterwards."
        ),
        examples=(
            ("The metrics that need no download", "metrics runs/demo"),
            ("CLIP too", "metrics runs/demo metric=clip metric.metrics.clip.path=FOLDER"),
        ),
        config="config",
        groups=("metric",),
    ),
    "import": CommandInfo(
        module="optbench.cli.trainers.import_command",
        line="a training of another trainer -> a command of optbench",
        usage="FILE ... [--yaml]",
        about=(
            "Reads what you train with elsewhere and prints the command that trains the same here, "
            "or with --yaml a sweep's file. Its content says whose it is: a command, TOML or GUI "
            "preset of kohya's trainer, LoRA_Easy_Training_Scripts, musubi-tuner, OneTrainer, "
            "ai-toolkit, SimpleTuner, diffusion-pipe, PEFT's comparison, or a LoRA file with "
            "metadata. Data sets are read from files beside it, or named after it. What means "
            "something else is translated, and what has no equivalent is listed."
        ),
        examples=(
            ("kohya's trainer", "import train.sh"),
            ("A configuration and its data sets", "import config.json multidatabackend.json"),
            ("What a LoRA file says of its training", "import my.safetensors"),
        ),
    ),
    "export": CommandInfo(
        module="optbench.cli.trainers.export_command",
        line="a run -> a script for another trainer",
        usage="RUN_DIR [--for=TRAINER]",
        about=(
            "Prints a shell script that trains the same LoRA with another trainer: kohya (kohya's "
            "sd-scripts, also without --for), musubi, onetrainer, ai-toolkit, simpletuner or "
            "diffusers. It writes the files that trainer takes, and starts it. What it cannot "
            "express is said in comments on top."
        ),
        examples=(
            ("", "export runs/single/RUN > train.sh"),
            ("OneTrainer", "export runs/single/RUN --for=onetrainer > train.sh"),
        ),
    ),
    "doctor": CommandInfo(
        module="optbench.cli.doctor",
        line="what can run on this machine; test an optimizer recipe of your own",
        usage="[RECIPE.yaml ...]",
        about=(
            "Without a file: versions, devices, and which optimizer recipes can run here. With "
            "recipe files: runs the conformance suite that every shipped recipe passes."
        ),
        examples=(("", "doctor"), ("A recipe of your own", "doctor mine/optimizer/mine.yaml")),
    ),
    "verify": CommandInfo(
        module="optbench.cli.verify",
        line="read every file of runs, plots and class images and name the corrupt ones",
        usage="[RUNS_DIR ...]",
        about=(
            "Reads every file of runs and resized LoRAs (without a folder: runs), of the plots in "
            "a folder of `optbench render` and of the images of `optbench regularize`, and names "
            "what is corrupt. A finished run with a corrupt file is marked as interrupted, so that "
            "the command that made it repairs it. Nothing else is changed."
        ),
        examples=(
            ("Runs", "verify runs"),
            ("Plots and class images", "verify renders regularization"),
        ),
    ),
}
