"""The table of kohya's options and ours: one line each, for both directions.

A setting of ours that stands in none of these tables has to be named in `WITHOUT_EQUIVALENT`; a
test goes through all settings there are.
"""

from __future__ import annotations

from collections.abc import Mapping

# kohya's option -> ours, where both hold the same value.
VALUES: Mapping[str, str] = {
    "pretrained_model_name_or_path": "base.path",
    "vae": "base.vae",
    "train_data_dir": "dataset.dir",
    "bucket_reso_steps": "dataset.bucket_reso_steps",
    "min_bucket_reso": "dataset.min_bucket_reso",
    "max_bucket_reso": "dataset.max_bucket_reso",
    "caption_extension": "dataset.caption_extension",
    "keep_tokens": "dataset.keep_tokens",
    "caption_dropout_rate": "dataset.caption_dropout_rate",
    "reg_data_dir": "dataset.reg_dir",
    "caption_prefix": "dataset.caption_prefix",
    "caption_suffix": "dataset.caption_suffix",
    "caption_separator": "dataset.caption_separator",
    "secondary_separator": "dataset.secondary_separator",
    "keep_tokens_separator": "dataset.keep_tokens_separator",
    "token_warmup_min": "dataset.token_warmup_min",
    "token_warmup_step": "dataset.token_warmup_step",
    "caption_tag_dropout_rate": "dataset.caption_tag_dropout_rate",
    "caption_dropout_every_n_epochs": "dataset.caption_dropout_every_n_epochs",
    "max_data_loader_n_workers": "dataset.num_workers",
    "network_dim": "network.dim",
    "network_alpha": "network.alpha",
    "scale_weight_norms": "network.scale_weight_norms",
    "network_weights": "network.weights",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "mixed_precision": "train.mixed_precision",
    "max_grad_norm": "train.max_grad_norm",
    "clip_skip": "train.clip_skip",
    "save_precision": "train.save_precision",
    "dynamo_backend": "train.dynamo_backend",
    "lr_warmup_steps": "lr_scheduler.warmup_steps",
    "lr_scheduler_num_cycles": "lr_scheduler.num_cycles",
    "lr_scheduler_power": "lr_scheduler.power",
    "lr_scheduler_min_lr_ratio": "lr_scheduler.min_lr_ratio",
    "lr_scheduler_timescale": "lr_scheduler.timescale",
    "lr_decay_steps": "lr_scheduler.decay_steps",
    "seed": "seed",
}
# Given or not given; ours is true or false.
FLAGS: Mapping[str, str] = {
    "enable_bucket": "dataset.enable_bucket",
    "bucket_no_upscale": "dataset.bucket_no_upscale",
    "shuffle_caption": "dataset.shuffle_caption",
    "flip_aug": "dataset.flip_aug",
    "dim_from_weights": "network.dim_from_weights",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "torch_compile": "train.torch_compile",
    "color_aug": "dataset.color_aug",
    "random_crop": "dataset.random_crop",
    "enable_wildcard": "dataset.enable_wildcard",
    "v_parameterization": "base.v_parameterization",
}
# The same two kinds for loss and noise. There an option without the one it needs is ignored, here
# it is refused: needed option by option, and which of its values are enough (empty: any but 0).
LOSS_VALUES: Mapping[str, str] = {
    "loss_type": "loss.loss_type",
    "huber_schedule": "loss.huber_schedule",
    "huber_c": "loss.huber_c",
    "huber_scale": "loss.huber_scale",
    "min_snr_gamma": "loss.min_snr_gamma",
    "v_pred_like_loss": "loss.v_pred_like_loss",
    "noise_offset": "loss.noise_offset",
    "adaptive_noise_scale": "loss.adaptive_noise_scale",
    "multires_noise_iterations": "loss.multires_noise_iterations",
    "multires_noise_discount": "loss.multires_noise_discount",
    "ip_noise_gamma": "loss.ip_noise_gamma",
    "min_timestep": "loss.min_timestep",
    "max_timestep": "loss.max_timestep",
    "prior_loss_weight": "loss.prior_loss_weight",
}
LOSS_FLAGS: Mapping[str, str] = {
    "debiased_estimation_loss": "loss.debiased_estimation_loss",
    "scale_v_pred_loss_like_noise_pred": "loss.scale_v_pred_loss_like_noise_pred",
    "noise_offset_random_strength": "loss.noise_offset_random_strength",
    "ip_noise_gamma_random_strength": "loss.ip_noise_gamma_random_strength",
    "zero_terminal_snr": "loss.zero_terminal_snr",
}
LOSS_NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "huber_schedule": ("loss_type", ("huber", "smooth_l1")),
    "huber_c": ("loss_type", ("huber", "smooth_l1")),
    "huber_scale": ("huber_schedule", ("constant", "exponential")),
    "adaptive_noise_scale": ("noise_offset", ()),
    "noise_offset_random_strength": ("noise_offset", ()),
    "multires_noise_discount": ("multires_noise_iterations", ()),
    "ip_noise_gamma_random_strength": ("ip_noise_gamma", ()),
}
LOSS_OFF_AT_ZERO = (
    *("min_snr_gamma", "v_pred_like_loss", "noise_offset", "adaptive_noise_scale"),
    *("multires_noise_iterations", "ip_noise_gamma"),
)
# Only beside a tracker other than TensorBoard, whose files are always there.
TRACKER_VALUES: Mapping[str, str] = {
    "log_tracker_name": "tracker.log_tracker_name",
    "wandb_run_name": "tracker.run_name",
}
# Ours is a share that kohya's leaves out where there is none.
DROPOUTS: Mapping[str, str] = {"network_dropout": "network.dropout"}
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
# kohya's, and why we need none.
NOT_NEEDED: Mapping[str, str] = {
    **dict.fromkeys(
        ("output_dir", "output_name", "logging_dir", "log_prefix", "save_model_as"),
        "a run's folder has its files",
    ),
    **dict.fromkeys(
        ("save_every_n_epochs", "save_state", "save_state_on_train_end", "resume"),
        "every epoch is saved, and the same command continues",
    ),
    **dict.fromkeys(
        ("cache_latents", "cache_latents_to_disk", "vae_batch_size"), "latents are always cached"
    ),
    **dict.fromkeys(
        ("sdpa", "xformers", "mem_eff_attn", "lowram", "highvram"), "speed and memory only"
    ),
    **dict.fromkeys(
        ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"),
        "outputs of encoders that are not trained are always remembered",
    ),
    "persistent_data_loader_workers": "dataset.num_workers are threads",
    **dict.fromkeys(
        ("num_cpu_threads_per_process", "num_processes", "num_machines"), "accelerate's own"
    ),
    **dict.fromkeys(("training_comment", "metadata_title", "metadata_author"), "texts in the file"),
    **dict.fromkeys(
        ("sample_prompts", "sample_every_n_epochs", "sample_at_first", "sample_sampler"),
        "every epoch is rendered from prompts= and render=",
    ),
    "network_module": "networks.lora is what network=lora and network=locon are",
    "config_file": "its settings are what is read here",
}

# What kohya's trainer takes where a command line says nothing; None: nothing at all.
DEFAULTS: Mapping[str, object] = {
    "resolution": "512,512",
    "bucket_reso_steps": 64,
    "min_bucket_reso": 256,
    "max_bucket_reso": 1024,
    "caption_extension": ".caption",
    "keep_tokens": 0,
    "caption_dropout_rate": 0.0,
    "network_dim": 4,
    "network_alpha": 1.0,
    "scale_weight_norms": None,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "mixed_precision": "no",
    "dynamo_backend": "inductor",
    "max_grad_norm": 1.0,
    "clip_skip": 1,
    "save_precision": "float",
    "lr_warmup_steps": 0,
    "lr_scheduler": "constant",
    "learning_rate": 2e-6,
    "max_train_steps": 1600,
    "optimizer_type": "AdamW",
}

# kohya's name of a class, in small letters -> our recipe. `DAdaptation` is the preprint's Adam.
RECIPES: Mapping[str, str] = {
    "": "adamw",
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
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
