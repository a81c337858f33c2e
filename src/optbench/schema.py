"""The schema on one page: one frozen dataclass per config group, with the range of every value.

YAML under conf/ holds every default once; a key missing there is an error. `config.build` reads
these types through pydantic; nothing here imports torch or pydantic, so that a config is checked
at once. The names are kohya's wherever kohya has the option.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf, Predicate

Precision = Literal["no", "fp16", "bf16"]
SheetFormat = Literal["png", "webp"]
SavePrecision = Literal["float", "fp16", "bf16"]
PIECE_TOKENS = 75  # a CLIP text encoder reads captions in pieces of so many tokens
MaxTokenLength = Literal[75, 150, 225]
ResizeMethod = Literal["none", "sv_ratio", "sv_cumulative", "sv_fro"]
ResizeCompat = Literal["v0.10", "v0.11"]
Attention = Literal["sdpa", "xformers", "eager"]
Isolation = Literal["auto", "process", "none"]
DynamoBackend = Literal["inductor", "aot_eager", "eager"]
LossType = Literal["l2", "l1", "huber", "smooth_l1"]
Holdout = Literal["auto", "none"]
HuberSchedule = Literal["constant", "exponential", "snr"]
RungSchedule = Literal["run", "own"]
RaceImages = Literal["finalists", "all"]


def key_of(field: str) -> str:
    """Return a field's key in YAML: the same, but for the one that Python would not like."""
    return "_target_" if field == "target" else field


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a message about a type, where its bounds alone do not say it."""

    expected: str
    fix: str  # {key} stands for the setting's key


class PlaceMark:
    """Marks a text that names a file or folder: `~` is the home folder, and empty is no name."""


def is_place(hint: Any) -> bool:
    """Return whether a type is a `Place`, a list of them, or one of these or null."""
    return any(part is PlaceMark or is_place(part) for part in get_args(hint))


def is_length(value: float) -> bool:
    """Return whether a number is a length: whole steps from 1, or a fraction of the run."""
    return 0 < value < 1 or (value >= 1 and value == int(value))


def _is_once_each(values: Sequence[object]) -> bool:
    return 0 < len(values) == len(set(values))


Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Rate = Annotated[float, Ge(0), Le(1)]
Place = Annotated[
    str,
    PlaceMark,
    Predicate(str.strip),
    Words("the name of a file or folder", "write {key}=PATH, or leave {key} out"),
]
Text = Annotated[str, Predicate(str.strip), Words("some text", "write {key}=null")]
Side = Annotated[int, Gt(0), MultipleOf(8), Words("a multiple of 8 above 0", "write {key}=512")]
Seed = Annotated[
    int, Ge(0), Lt(2**63), Words("a whole number from 0 to 2^63 - 1", "write {key}=1234")
]
ImageSeed = Annotated[
    int, Ge(0), Lt(2**64), Words("a whole number from 0 to 2^64 - 1", "write {key}=1234")
]
Length = Annotated[
    float,
    Predicate(is_length),
    Words(
        "whole steps (1 and more), or a fraction of the run (below 1)",
        "write {key}=100 or {key}=0.1",
    ),
]
Warmup = Annotated[
    float,
    Predicate(lambda value: value == 0 or is_length(value)),
    Words(
        "whole steps (1 and more), a fraction of the run (below 1), or 0",
        "write {key}=100 or {key}=0.1",
    ),
]
Separator = Annotated[
    str, Len(1), Words("what parts tags", "write {key}=',' (in quotes: \"{key}=','\")")
]
Prompts = Annotated[
    tuple[Annotated[str, Predicate(str.strip)], ...],
    Len(1),
    Words("at least one text, and none empty", "write {key}=girl, or leave it out"),
]
Seeds = Annotated[
    tuple[ImageSeed, ...],
    Predicate(_is_once_each),
    Words("at least one seed, and none twice", "write '{key}=[112233,445566]'"),
]
Timesteps = Annotated[
    tuple[CountOrZero, ...],
    Predicate(_is_once_each),
    Words("at least one timestep, and none twice", "write '{key}=[100,300,500,700,900]'"),
]
NotZero = Annotated[
    float,
    Predicate(bool),
    Words("a number other than 0", "write {key}=null, or a tenth of loss.noise_offset"),
]
MaxNorm = Annotated[float, Ge(0), Words("a norm above 0, or 0 for no clipping", "write {key}=1")]
FileName = Annotated[
    str,
    Predicate(re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,+-]*").fullmatch),
    Words(
        "letters, digits and _ . , + - only, for it becomes a file's name",
        "choose another name, for instance my-sweep",
    ),
]
Device = Annotated[
    str,
    Predicate(re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch),
    Words("auto, cpu, mps, cuda or cuda:NUMBER", "write {key}=auto"),
]
Rung = Annotated[
    float,
    Predicate(is_length),
    Words("whole epochs (1 and more), or a share of the run (below 1)", "write {key}=[1,2]"),
]
RateRange = Annotated[
    str,
    Predicate(re.compile(r"[0-9.eE+-]+:[0-9.eE+-]+:[0-9]+").fullmatch),
    Words("LOW:HIGH:NUMBER, multiples of each recipe's own rate", "write {key}=0.2:5:9"),
]
SeedRange = Annotated[
    str,
    Predicate(re.compile(r"\d+\.\.\d+").fullmatch),
    Words("LEAST..MOST fresh seeds", "write {key}=2..6"),
]
Budget = Annotated[
    str,
    Predicate(re.compile(r"\d+(\.\d+)?(h|min|ep)").fullmatch),
    Words("hours, minutes or epochs", "write {key}=8h, {key}=90min or {key}=120ep"),
]
BlockWeights = Annotated[
    tuple[NotNegative, ...] | NotNegative | str | None,
    Words(
        "a number of 0 or more for each block, one number for all, or a shape like cosine",
        "write {key}=cosine, or null for the same rate everywhere",
    ),
]
LearningRate = Annotated[
    Positive | None,
    Words(
        "a rate above 0; several classes move a group of rate 0 all the same",
        "to leave a part untrained switch it off: network.train_text_encoder=false or "
        "network.train_unet=false, and leave its rate out",
    ),
]


class Options:
    """How pydantic reads every group: no type is guessed at, no key is ignored."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
        "alias_generator": key_of,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOptions(Options):
    """The frozen base model (group `base`)."""

    name: str
    family: str  # a module of optbench.models
    path: Place  # a folder in diffusers layout, a file in original layout, or a hub id
    vae: Place | None  # a separate autoencoder, folder or file; None: the one in `path`
    v_parameterization: bool | None  # what the unet predicts; None: what the checkpoint says
    # Recipes' default rates are for SD1.x; this times as much suits this base. What scales a rate
    # makes no other base model: files decide whether two are equal.
    lr_scale: Positive = field(compare=False)
    # The scale that a race found on this base, by recipe; None: none did. A run has its own alone.
    lr_scales: Mapping[str, Positive | None] = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions(Options):
    """The training images and their captions (group `dataset`)."""

    name: str
    dir: Place  # holds folders named <repeats>_<class words>, or metadata.jsonl, or images
    num_repeats: Count | None  # of images right in `dir`; None: names of folders say it
    reg_dir: Place | None  # the same, with images of the class alone; None: no regularization
    resolution: tuple[Count, Count]  # width, height: the pixel budget of a bucket
    enable_bucket: bool
    bucket_no_upscale: bool
    bucket_reso_steps: Count
    min_bucket_reso: Count
    max_bucket_reso: Count
    class_tokens: Text | None  # for images without caption; None: the folder's class words
    caption_extension: str
    enable_wildcard: bool  # lines of a caption are alternatives, and {a|b} is one of its texts
    caption_prefix: Text | None  # a space comes between it and the caption
    caption_suffix: Text | None
    caption_separator: Separator
    secondary_separator: Text | None  # becomes the separator after shuffling and dropping
    shuffle_caption: bool
    keep_tokens: CountOrZero  # the first n tags stay in place when captions are shuffled
    keep_tokens_separator: Text | None  # what is before its first, and after its second, stays too
    token_warmup_min: CountOrZero  # so many movable tags are there from the beginning
    token_warmup_step: NotNegative  # the others join one by one until this update; below 1: a share
    caption_tag_dropout_rate: Rate
    caption_dropout_rate: Rate
    caption_dropout_every_n_epochs: CountOrZero  # 0: never
    flip_aug: bool
    num_workers: CountOrZero  # threads that read images ahead; they change no draw and no weight
    color_aug: bool  # this and random_crop: images are encoded anew at every use
    random_crop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions(Options):
    """The LoRA that is trained (groups `network`, `dropout`, `scale_weight_norms`)."""

    name: str
    dim: Count
    alpha: Positive  # scale is alpha / dim; the YAML default is dim / 2
    conv_dim: Count | None  # None: 3x3 convolutions are left alone
    conv_alpha: Positive | None
    dropout: Share
    rank_dropout: Share
    module_dropout: Share
    scale_weight_norms: Positive | None
    # What multiplies the unet's rate in each block; a number is for all, 0 leaves a block out.
    down_lr_weight: BlockWeights
    mid_lr_weight: BlockWeights
    up_lr_weight: BlockWeights
    block_lr_zero_threshold: NotNegative  # a weight up to this counts as 0
    # One dim (0: no LoRA) and alpha for each of kohya's blocks, instead of those above.
    block_dims: tuple[CountOrZero, ...] | None
    block_alphas: tuple[Positive, ...] | None  # None: alpha for all
    conv_block_dims: tuple[CountOrZero, ...] | None
    conv_block_alphas: tuple[Positive, ...] | None  # None: conv_alpha for all, or 1
    rslora: bool  # the scale is alpha / sqrt(dim)
    dora: bool  # every layer learns the length of its weights apart from their direction
    train_unet: bool
    train_text_encoder: bool
    weights: Place | None  # a LoRA file to continue from
    dim_from_weights: bool  # every layer gets the dim and alpha it has in that file


# Where the step size lives, by the keys of a param group; rect is RAdam's rectification, relative
# the rate Adafactor works out for each tensor.
EffectiveLr = Literal[
    "lr", "d*lr", "rect*d*lr", "d*lr/g0_norm", "scheduled_lr", "rect*lr", "relative"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerTraits(Options):
    """Declared in a recipe: how its class must be stepped, scheduled, clipped and saved."""

    stepping: Literal["plain", "closure"]
    weights: Literal["live", "averaged"]  # averaged: evaluated and saved at the averaged point
    schedule: Literal["external", "constant", "own"]  # what is meant: any, or a constant rate
    warmup: Literal["allowed", "refused"]  # refused: the class fails at a rate of 0
    clip: Literal["external", "own", "refused"]  # own: it limits its updates; refused: needs 0
    lr_role: Literal["manual", "multiplier", "automatic"]  # multiplier: the real rate is d x lr
    group_rates: Literal["free", "equal"]  # equal: one rate for unet and text encoder
    effective_lr: EffectiveLr
    uses_global_rng: bool
    exact_load: bool  # torch's load_state_dict would change state dtypes; put them back


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOptions(Options):
    """One recipe: a class, its arguments, its rates and its traits (group `optimizer`)."""

    name: str
    target: str  # YAML key `_target_`: the dotted path of the class
    lr: LearningRate  # multiplied by the root key `lr_mult`; None: the class finds its own rate
    unet_lr: LearningRate  # None: `lr`
    text_encoder_lr: LearningRate  # None: `lr`
    args: Mapping[str, Any]
    group_args: Mapping[str, Any]  # what the class wants in every param group besides lr
    refused_args: Mapping[str, str]  # arguments that are broken or ignored upstream, and why
    traits: OptimizerTraits
    package: str  # what to install for it
    paper: str
    note: str  # printed and shown in the report when not empty


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSchedulerOptions(Options):
    """How the rate changes over a run (group `lr_scheduler`)."""

    name: str
    warmup_steps: Warmup  # 1 and more: steps; below 1: that fraction of all steps
    num_cycles: Count
    power: Positive | None  # this and what follows: None where the schedule has no use for it
    min_lr_ratio: Share | None  # the smallest rate, as a share of the whole one
    timescale: Length | None  # steps or a fraction, as for the warm-up
    decay_steps: Warmup | None  # steps or a fraction; 0: none
    step_rules: str | None  # "1:10,0.1:20,0.01": multiplier until an update, and the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(Options):
    """How long, how much at once, and in which precision (group `train`)."""

    batch_size: Count
    epochs: Count
    max_steps: Count | None  # None: `epochs` decides; else the last epoch may be cut short
    gradient_accumulation: Count
    mixed_precision: Precision
    max_grad_norm: MaxNorm  # 0: no clipping
    clip_skip: Count  # 1: the text encoder's last layer
    max_token_length: MaxTokenLength  # what is read of a caption, in pieces of 75 tokens
    save_precision: SavePrecision
    gradient_checkpointing: bool  # less memory, more time, the same weights
    attention: Attention
    torch_compile: bool  # the unet, for training
    dynamo_backend: DynamoBackend  # what compiles it
    device: Device  # auto, cpu, cuda, mps
    num_threads: Count | None  # CPU threads; None: torch decides


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions(Options):
    """The noise that is added, the loss and its weighting (group `loss`)."""

    loss_type: LossType
    huber_schedule: HuberSchedule | None  # this and the next: None where loss_type has no use
    huber_c: Positive | None  # errors above it count in proportion, below it squared
    huber_scale: Positive | None  # None where the schedule is snr
    min_snr_gamma: Positive | None  # None, here and below: off
    debiased_estimation_loss: bool
    scale_v_pred_loss_like_noise_pred: bool
    v_pred_like_loss: Positive | None
    noise_offset: Positive | None
    noise_offset_random_strength: bool
    adaptive_noise_scale: NotZero | None
    multires_noise_iterations: Count | None
    multires_noise_discount: Positive | None
    ip_noise_gamma: Positive | None
    ip_noise_gamma_random_strength: bool
    zero_terminal_snr: bool
    min_timestep: int
    max_timestep: int | None  # the first one not drawn; None: all of the base's
    prior_loss_weight: Positive  # of regularization images


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Options):
    """One prompt of a prompt set, rendered at one size."""

    name: FileName
    text: str
    negative: str
    width: Side
    height: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions(Options):
    """The fixed prompts every run renders (group `prompts`)."""

    name: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions(Options):
    """How images are sampled from the prompts (group `render`)."""

    enabled: bool
    seeds: Seeds  # up to 64 bits
    cfg_scale: Positive
    steps: Count
    sampler: str  # the name A1111 gives it
    batch_size: Count
    sheet_format: SheetFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions(Options):
    """The images and timesteps of the validation loss (group `validate`)."""

    enabled: bool
    every_n_epochs: Count | None  # the last epoch is always validated; None: it alone
    timesteps: Timesteps  # of the base's 1000
    num_pictures: Count | None  # of each kind; None: all
    dir: Place | None  # held-out images, in the data set's layout, as those of the next two
    ood_dir: Place | None  # the subject in outfits and places that are not trained
    others_dir: Place | None  # other subjects, which the LoRA ought to leave alone
    holdout: Holdout  # auto: without `dir` a sixth of the data set is not trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOptions(Options):
    """Metrics measured on the rendered images (group `metric`)."""

    enabled: bool
    metrics: Mapping[str, Any]  # by any name: `_target_`, a class, and its arguments; null: none


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerOptions(Options):
    """Trackers that log a run besides TensorBoard (group `tracker`)."""

    log_with: tuple[str, ...]  # wandb, mlflow, trackio, through accelerate's own trackers
    log_tracker_name: str | None  # the project or experiment; None: optbench
    run_name: str | None  # None: the run's own
    args: Mapping[str, Any]  # by tracker: what its init takes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions(Options):
    """What the sweep's report shows; changes no result."""

    goal: bool  # a few training images, as small copies; false: none, for private data


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(Options):
    """Everything one run is made from."""

    base: BaseOptions
    dataset: DatasetOptions
    network: NetworkOptions
    optimizer: OptimizerOptions
    lr_scheduler: LrSchedulerOptions
    train: TrainOptions
    loss: LossOptions
    prompts: PromptOptions
    render: RenderOptions
    validate: ValidateOptions
    metric: MetricOptions
    tracker: TrackerOptions
    report: ReportOptions
    seed: Seed
    lr_mult: Positive
    sweep_name: FileName | None
    runs_dir: Place
    cache_dir: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions(Options):
    """How the runs of a command line are made; belongs to the command, and to no run."""

    isolation: Isolation  # auto: a process per run where a GPU is used
    workers: Count | None  # runs at a time, each in its process; None: one per GPU, else one
    until_epoch: Count | None  # trained so far and left to be continued; None: to the end


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceOptions(Options):
    """How a race is run; belongs to the command, and to no run (group `race`)."""

    rates: RateRange
    rungs: Annotated[tuple[Rung, ...], Len(1)]  # the run's end is the last one in any case
    rung_schedule: RungSchedule
    eta: Annotated[int, Ge(2)]
    confirm: SeedRange
    alpha: Annotated[float, Gt(0), Lt(1)]
    budget: Budget | None
    nuisance: tuple[str, ...]  # keys of swept settings; the rate is one of them in any case
    render: RaceImages


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeOptions(Options):
    """How finished LoRA files are shrunk or merged (`optbench resize`)."""

    source: tuple[Place, ...]  # LoRA files or folders of runs; several are merged into one
    weights: tuple[float, ...] | None  # of a merge, one per source; None: nothing is merged
    method: ResizeMethod
    param: float | None  # what the method compares singular values with
    new_dim: Count | None  # none: the dim itself; other methods: the largest dim, None no limit
    new_conv_dim: Count | None  # the same for convolutions, 1x1 ones too; None: `new_dim`
    save_precision: SavePrecision
    compat: ResizeCompat  # v0.10: one direction more, as kohya's tool kept before its repair
    clip_skip: Count | None  # of images and losses; None: what the file says, or 1
    base: BaseOptions  # what images are made with
    dataset: DatasetOptions  # what the validation loss is measured on
    prompts: PromptOptions
    render: RenderOptions
    validate: ValidateOptions
    mixed_precision: Precision  # of the base model's unet and text encoder
    device: Device  # auto, cpu, mps, cuda or cuda:NUMBER
    num_threads: Count | None  # CPU threads; None: torch decides
    sweep_name: FileName | None
    runs_dir: Place
    cache_dir: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularizeOptions(Options):
    """Regularization images of a class, made by a base model (`optbench regularize`)."""

    base: BaseOptions
    dir: Place  # gets a folder <repeats>_<class words>
    class_words: str
    repeats: Count
    num_pictures: Count
    prompt: Prompts  # several take turns
    write_captions: bool
    negative: str
    width: Side
    height: Side
    sampler: str  # the name A1111 gives it
    steps: Count
    cfg_scale: Positive
    clip_skip: Count  # 1: the text encoder's last layer
    seed: Seed  # of the first image; the next ones count on
    batch_size: Count
    mixed_precision: Precision
    device: Device  # auto, cpu, mps, cuda, cuda:NUMBER
    num_threads: Count | None  # CPU threads; None: torch decides
    cache_dir: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotOptions(Options):
    """An X/Y/Z plot of finished LoRA files (`optbench render`), less its axes."""

    lora: tuple[Place, ...]  # files, and folders of runs
    with_base: bool
    strength: float  # of every LoRA
    wildcards_dir: Place | None
    clip_skip: Count | None  # None: what the files say, or 1
    base: BaseOptions
    prompts: PromptOptions
    render: RenderOptions
    dir: Place
    mixed_precision: Precision
    device: Device  # auto, cpu, mps, cuda, cuda:NUMBER
    num_threads: Count | None  # CPU threads; None: torch decides
    cache_dir: Place
