"""What optimizers, schedules and arguments are called here and in kohya's trainer.

The options themselves are in `options.csv`. A setting of ours that stands neither there nor here
has to be named in `WITHOUT_EQUIVALENT`; a test goes through all settings there are.
"""

from __future__ import annotations

from collections.abc import Mapping

# Only beside a tracker other than TensorBoard, whose files are always there.
TRACKER_VALUES: Mapping[str, str] = {
    "log_tracker_name": "tracker.log_tracker_name",
    "wandb_run_name": "tracker.run_name",
}
# What --network_args holds.
NETWORK_ARGS: Mapping[str, str] = {
    "conv_dim": "network.conv_dim",
    "conv_alpha": "network.conv_alpha",
    "rank_dropout": "network.rank_dropout",
    "module_dropout": "network.module_dropout",
    "down_lr_weight": "network.down_lr_weight",
    "mid_lr_weight": "network.mid_lr_weight",
    "up_lr_weight": "network.up_lr_weight",
    "block_lr_zero_threshold": "network.block_lr_zero_threshold",
    "block_dims": "network.block_dims",
    "block_alphas": "network.block_alphas",
    "conv_block_dims": "network.conv_block_dims",
    "conv_block_alphas": "network.conv_block_alphas",
}
# Handled one by one, because one of ours is several of kohya's or the other way round.
SPECIAL = (
    "dataset.resolution",
    "dataset.num_repeats",
    "dataset.class_tokens",
    "network.rslora",
    "network.dora",
    "network.train_unet",
    "network.train_text_encoder",
    "optimizer._target_",
    "optimizer.lr",
    "optimizer.unet_lr",
    "optimizer.text_encoder_lr",
    "optimizer.args",
    "optimizer.group_args",
    "lr_scheduler.step_rules",
    "lr_mult",
    "train.epochs",
    "train.max_steps",
    "train.attention",
    "train.max_token_length",
    "base.family",
    "prompts.prompts",
    "render.seeds",
    "render.cfg_scale",
    "render.steps",
    "render.sampler",
    "tracker.log_with",
    "validate.holdout",
    *TRACKER_VALUES.values(),
)
# Ours alone, and why a kohya command lacks nothing without it.
WITHOUT_EQUIVALENT: Mapping[str, str] = {
    "base.lr_scale": "the rates in the command are multiplied by it already",
    "base.lr_scales": "the rates in the command are multiplied by the recipe's already",
    "render.enabled": "pictures do not change the training",
    "render.batch_size": "pictures do not change the training",
    "render.sheet_format": "sheets are made of finished pictures",
    "train.device": "accelerate chooses the device",
    "train.num_threads": "accelerate launch --num_cpu_threads_per_process",
    "optimizer.traits": "says how the class is stepped",
    "optimizer.refused_args": "texts of the recipe",
    "optimizer.package": "texts of the recipe",
    "optimizer.paper": "texts of the recipe",
    "optimizer.note": "texts of the recipe",
    **dict.fromkeys(
        (
            *("validate.enabled", "validate.dir", "validate.ood_dir", "validate.others_dir"),
            *("validate.num_pictures", "validate.timesteps", "validate.every_n_epochs"),
        ),
        "losses are measured apart from the training",
    ),
    "metric.enabled": "numbers of pictures do not change the training",
    "metric.metrics": "numbers of pictures do not change the training",
    "tracker.args": "kohya's --log_tracker_config is a file of the same; it is not read here",
    "sweep_name": "a place on disk",
    "runs_dir": "a place on disk",
    "cache_dir": "a place on disk",
}
# kohya's name of a class, in small letters -> our recipe. `DAdaptation` is the preprint's Adam.
RECIPES: Mapping[str, str] = {
    "": "adamw",
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "pagedadamw": "pagedadamw32bit",  # the same class, which has 32 bits by itself
    "pagedadamw8bit": "pagedadamw8bit",
    "pagedadamw32bit": "pagedadamw32bit",
    "lion": "lion",
    "lion8bit": "lion8bit",
    "pagedlion8bit": "pagedlion8bit",
    "sgdnesterov": "sgdnesterov",
    "sgdnesterov8bit": "sgdnesterov8bit",
    "dadaptation": "dadaptadampreprint",
    "dadaptadampreprint": "dadaptadampreprint",
    "dadaptadagrad": "dadaptadagrad",
    "dadaptadam": "dadaptadam",
    "dadaptadan": "dadaptadan",
    "dadaptadanip": "dadaptadanip",
    "dadaptlion": "dadaptlion",
    "dadaptsgd": "dadaptsgd",
    "prodigy": "prodigy",
    "radamschedulefree": "radamschedulefree",
    "adamwschedulefree": "adamwschedulefree",
    "sgdschedulefree": "sgdschedulefree",
    "adafactor": "adafactor",
}
# Classes of torch.optim that are stepped and scheduled like AdamW and have no recipe of ours.
PLAIN_CLASSES = (
    *("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
SPELLED: Mapping[str, str] = {  # recipe -> how kohya's users write it; others by their class
    "adamw": "AdamW",
    "adamw8bit": "AdamW8bit",
    "pagedadamw8bit": "PagedAdamW8bit",
    "pagedadamw32bit": "PagedAdamW32bit",
    "lion": "Lion",
    "lion8bit": "Lion8bit",
    "pagedlion8bit": "PagedLion8bit",
    "sgdnesterov": "SGDNesterov",
    "sgdnesterov8bit": "SGDNesterov8bit",
    "dadaptadampreprint": "DAdaptAdamPreprint",
    "dadaptadagrad": "DAdaptAdaGrad",
    "dadaptadam": "DAdaptAdam",
    "dadaptadan": "DAdaptAdan",
    "dadaptadanip": "DAdaptAdanIP",
    "dadaptlion": "DAdaptLion",
    "dadaptsgd": "DAdaptSGD",
    "prodigy": "Prodigy",
    "radamschedulefree": "RAdamScheduleFree",
    "adamwschedulefree": "AdamWScheduleFree",
    "sgdschedulefree": "SGDScheduleFree",
    "adafactor": "Adafactor",
    "adafactor_auto": "Adafactor",
}
# Ours -> kohya's; rex has none there.
SCHEDULES: Mapping[str, str] = {
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "cosine_with_min_lr": "cosine_with_min_lr",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "warmup_stable_decay",
    "piecewise": "piecewise_constant",
    "adafactor": "adafactor",
}
SMALLEST_POLYNOMIAL_RATE = 1e-7  # kohya's, whatever is asked
