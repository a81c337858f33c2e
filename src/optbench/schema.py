"""The schema on one page: one frozen dataclass per config group, without defaults.

YAML under conf/ holds every default once; a key missing there is an error and no surprise. Nothing
here has behaviour, and nothing here imports torch, so that checking a config stays instant. The
names are kohya's wherever kohya has the option.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["no", "fp16", "bf16"]
SheetFormat = Literal["png", "webp"]
SavePrecision = Literal["float", "fp16", "bf16"]
MaxTokenLength = Literal[75, 150, 225]
ResizeMethod = Literal["none", "sv_ratio", "sv_cumulative", "sv_fro"]
ResizeCompat = Literal["v0.10", "v0.11"]
Attention = Literal["sdpa", "xformers", "eager"]
Isolation = Literal["auto", "process", "none"]
DynamoBackend = Literal["inductor", "aot_eager", "eager"]
LossType = Literal["l2", "l1", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOptions:
    """The frozen model that is adapted (group `base`)."""

    name: str
    family: str  # a module of optbench.models
    path: str  # a folder in diffusers layout, a file in original layout, or a hub id
    vae: str | None  # a separate autoencoder, folder or file; None: the one in `path`
    v_parameterization: bool | None  # what the unet predicts; None: what the checkpoint says
    lr_scale: float  # recipes' default rates are for SD1.x; this times as much suits this base


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """The pictures and captions to learn (group `dataset`)."""

    name: str
    dir: str  # holds folders named <repeats>_<class words>, or metadata.jsonl, or pictures
    num_repeats: int | None  # of pictures right in `dir`; None: names of folders say it
    reg_dir: str | None  # the same, with pictures of the class alone; None: no regularization
    resolution: tuple[int, int]  # width, height: the pixel budget of a bucket
    enable_bucket: bool
    bucket_no_upscale: bool
    bucket_reso_steps: int
    min_bucket_reso: int
    max_bucket_reso: int
    class_tokens: str | None  # for pictures without caption; None: the folder's class words
    caption_extension: str
    enable_wildcard: bool  # lines of a caption are alternatives, and {a|b} is one of its texts
    caption_prefix: str | None  # a space comes between it and the caption
    caption_suffix: str | None
    caption_separator: str
    secondary_separator: str | None  # becomes the separator after shuffling and dropping
    shuffle_caption: bool
    keep_tokens: int  # the first n tags stay in place when captions are shuffled
    keep_tokens_separator: str | None  # what is before its first, and after its second, stays too
    token_warmup_min: int  # so many movable tags are there from the beginning
    token_warmup_step: float  # the others join one by one until this update; below 1: a share
    caption_tag_dropout_rate: float
    caption_dropout_rate: float
    caption_dropout_every_n_epochs: int  # 0: never
    flip_aug: bool
    num_workers: int  # threads that read pictures ahead; they change no draw and no weight
    color_aug: bool  # this and random_crop: pictures are encoded anew at every use
    random_crop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """The LoRA that is trained (groups `network`, `dropout`, `scale_weight_norms`)."""

    name: str
    dim: int
    alpha: float  # scale is alpha / dim; the YAML default is dim / 2
    conv_dim: int | None  # None: 3x3 convolutions are left alone
    conv_alpha: float | None
    dropout: float
    rank_dropout: float
    module_dropout: float
    scale_weight_norms: float | None
    # What multiplies the unet's rate in each block; a number is for all, 0 leaves a block out.
    down_lr_weight: tuple[float, ...] | float | str | None
    mid_lr_weight: tuple[float, ...] | float | str | None
    up_lr_weight: tuple[float, ...] | float | str | None
    block_lr_zero_threshold: float  # a weight up to this counts as 0
    # One dim (0: no LoRA) and alpha for each of kohya's blocks, instead of those above.
    block_dims: tuple[int, ...] | None
    block_alphas: tuple[float, ...] | None  # None: alpha for all
    conv_block_dims: tuple[int, ...] | None
    conv_block_alphas: tuple[float, ...] | None  # None: conv_alpha for all, or 1
    rslora: bool  # the scale is alpha / sqrt(dim)
    dora: bool  # every layer learns the length of its weights apart from their direction
    train_unet: bool
    train_text_encoder: bool
    weights: str | None  # a LoRA file to continue from
    dim_from_weights: bool  # every layer gets the dim and alpha it has in that file


# Where the step size lives, by the keys of a param group; rect is RAdam's rectification, relative
# the rate Adafactor works out for each tensor.
EffectiveLr = Literal[
    "lr", "d*lr", "rect*d*lr", "d*lr/g0_norm", "scheduled_lr", "rect*lr", "relative"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerTraits:
    """What is special about stepping one optimizer class, declared in its recipe."""

    stepping: Literal["plain", "closure"]
    weights: Literal["live", "averaged"]  # averaged: evaluated and saved at the averaged point
    schedule: Literal["external", "constant", "own"]  # which lr_scheduler it tolerates
    warmup: Literal["allowed", "refused"]
    clip: Literal["external", "own", "refused"]  # refused: train.max_grad_norm must be 0
    lr_role: Literal["manual", "multiplier", "automatic"]  # multiplier: the real rate is d x lr
    group_rates: Literal["free", "equal"]  # equal: one rate for unet and text encoder
    effective_lr: EffectiveLr
    uses_global_rng: bool
    exact_load: bool  # torch's load_state_dict would change state dtypes; put them back


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOptions:
    """One recipe: a class, its arguments, its rates and its traits (group `optimizer`)."""

    name: str
    target: str  # YAML key `_target_`: the dotted path of the class
    lr: float | None  # multiplied by the root key `lr_mult`; None: the class finds its own rate
    unet_lr: float | None  # None: `lr`
    text_encoder_lr: float | None  # None: `lr`
    args: Mapping[str, Any]
    group_args: Mapping[str, Any]  # what the class wants in every param group besides lr
    refused_args: Mapping[str, str]  # arguments that are broken or ignored upstream, and why
    traits: OptimizerTraits
    package: str  # what to install for it
    paper: str
    note: str  # printed and shown in the report when not empty


@dataclass(frozen=True, slots=True, kw_only=True)
class LrSchedulerOptions:
    """How the rate changes over a run (group `lr_scheduler`)."""

    name: str
    warmup_steps: float  # 1 and more: steps; below 1: that fraction of all steps
    num_cycles: int
    power: float | None  # this and what follows: None where the schedule has no use for it
    min_lr_ratio: float | None  # the smallest rate, as a share of the whole one
    timescale: float | None  # steps or a fraction, as for the warm-up
    decay_steps: float | None  # steps or a fraction
    step_rules: str | None  # "1:10,0.1:20,0.01": multiplier until an update, and the last one


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How long, how much at once, and in which precision (group `train`)."""

    batch_size: int
    epochs: int
    max_steps: int | None  # None: `epochs` decides; else the last epoch may be cut short
    gradient_accumulation: int
    mixed_precision: Precision
    max_grad_norm: float  # 0: no clipping
    clip_skip: int  # 1: the text encoder's last layer
    max_token_length: MaxTokenLength  # what is read of a caption, in pieces of 75 tokens
    save_precision: SavePrecision
    gradient_checkpointing: bool  # less memory, more time, the same weights
    attention: Attention
    torch_compile: bool  # the unet, for training
    dynamo_backend: DynamoBackend  # what compiles it
    device: str  # auto, cpu, cuda, mps
    num_threads: int | None  # CPU threads; None: torch decides


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """Which noise is added and how errors are counted (group `loss`)."""

    loss_type: LossType
    huber_schedule: HuberSchedule | None  # this and the next: None where loss_type has no use
    huber_c: float | None  # errors above it count in proportion, below it squared
    huber_scale: float | None  # None where the schedule is snr
    min_snr_gamma: float | None  # None, here and below: off
    debiased_estimation_loss: bool
    scale_v_pred_loss_like_noise_pred: bool
    v_pred_like_loss: float | None
    noise_offset: float | None
    noise_offset_random_strength: bool
    adaptive_noise_scale: float | None
    multires_noise_iterations: int | None
    multires_noise_discount: float | None
    ip_noise_gamma: float | None
    ip_noise_gamma_random_strength: bool
    zero_terminal_snr: bool
    min_timestep: int
    max_timestep: int | None  # the first one not drawn; None: all of the base's
    prior_loss_weight: float  # of regularization pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt of a prompt set, rendered at one size."""

    name: str
    text: str
    negative: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """The fixed prompts every run renders (group `prompts`)."""

    name: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """How pictures are made from the prompts (group `render`)."""

    enabled: bool
    seeds: tuple[int, ...]  # up to 64 bits
    cfg_scale: float
    steps: int
    sampler: str  # the name A1111 gives it
    batch_size: int
    sheet_format: SheetFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidateOptions:
    """On which pictures and noise networks are compared (group `validate`)."""

    enabled: bool
    timesteps: tuple[int, ...]  # of the base's 1000
    num_pictures: int | None  # of each kind, training and held-out; None: all
    dir: str | None  # held-out pictures, in the data set's layout
    every_n_epochs: int  # the last epoch is always validated


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricOptions:
    """Which numbers of pictures are measured from their files (group `metric`)."""

    enabled: bool
    metrics: Mapping[str, Any]  # by any name: `_target_`, a class, and its arguments; null: none


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerOptions:
    """Who is told the numbers of a run besides TensorBoard (group `tracker`)."""

    log_with: tuple[str, ...]  # wandb, mlflow, trackio, through accelerate's own trackers
    log_tracker_name: str | None  # the project or experiment; None: optbench
    run_name: str | None  # None: the run's own
    args: Mapping[str, Any]  # by tracker: what its init takes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything one run is made from; only `pipeline` may take it whole."""

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
    seed: int
    lr_mult: float
    sweep_name: str | None
    runs_dir: str
    cache_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How the runs of a command line are made; belongs to the command, and to no run."""

    isolation: Isolation  # auto: a process per run where a GPU is used
    workers: int | None  # runs at a time, each in its process; None: one per GPU, else one
    first_touch_seconds: float  # how long the folders of runs and cache may take to answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeOptions:
    """How finished LoRA files are shrunk or merged (`python -m optbench resize`)."""

    source: tuple[str, ...]  # LoRA files or folders of runs; several are merged into one
    weights: tuple[float, ...] | None  # of a merge, one per source; None: nothing is merged
    method: ResizeMethod
    param: float | None  # what the method compares singular values with
    new_dim: int | None  # none: the dim itself; other methods: the largest dim, None no limit
    new_conv_dim: int | None  # the same for convolutions, 1x1 ones too; None: `new_dim`
    save_precision: SavePrecision
    compat: ResizeCompat  # v0.10: one direction more, as kohya's tool kept before its repair
    clip_skip: int | None  # of pictures and losses; None: what the file says, or 1
    base: BaseOptions  # what pictures are made with
    dataset: DatasetOptions  # what the validation loss is measured on
    prompts: PromptOptions
    render: RenderOptions
    validate: ValidateOptions
    mixed_precision: Precision  # of the base model's unet and text encoder
    device: str  # auto, cpu, mps, cuda or cuda:NUMBER
    num_threads: int | None  # CPU threads; None: torch decides
    sweep_name: str | None
    runs_dir: str
    cache_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularizeOptions:
    """How a base makes pictures of a class (`python -m optbench regularize`)."""

    base: BaseOptions
    dir: str  # gets a folder <repeats>_<class words>
    class_words: str
    repeats: int
    num_pictures: int
    prompt: tuple[str, ...]  # several take turns
    write_captions: bool
    negative: str
    width: int
    height: int
    sampler: str  # the name A1111 gives it
    steps: int
    cfg_scale: float
    clip_skip: int  # 1: the text encoder's last layer
    seed: int  # of the first picture; the next ones count on
    batch_size: int
    mixed_precision: Precision
    device: str  # auto, cpu, mps, cuda, cuda:NUMBER
    num_threads: int | None  # CPU threads; None: torch decides
    cache_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotOptions:
    """What finished LoRA files are shown with (`python -m optbench render`), but for the sides."""

    lora: tuple[str, ...]  # files, and folders of runs
    with_base: bool
    strength: float  # of every LoRA
    wildcards_dir: str | None
    clip_skip: int | None  # None: what the files say, or 1
    base: BaseOptions
    prompts: PromptOptions
    render: RenderOptions
    dir: str
    mixed_precision: Precision
    device: str  # auto, cpu, mps, cuda, cuda:NUMBER
    num_threads: int | None  # CPU threads; None: torch decides
    cache_dir: str
