"""Settings of a data set in which everything that can be off is off."""

from __future__ import annotations

from optbench.schema import DatasetOptions

PLAIN = DatasetOptions(
    name="test",
    dir="unset",
    num_repeats=None,
    reg_dir=None,
    resolution=(512, 512),
    enable_bucket=True,
    bucket_no_upscale=True,
    bucket_reso_steps=64,
    min_bucket_reso=256,
    max_bucket_reso=1024,
    class_tokens=None,
    caption_extension=".txt",
    enable_wildcard=False,
    caption_prefix=None,
    caption_suffix=None,
    caption_separator=",",
    secondary_separator=None,
    shuffle_caption=False,
    keep_tokens=0,
    keep_tokens_separator=None,
    token_warmup_min=1,
    token_warmup_step=0.0,
    caption_tag_dropout_rate=0.0,
    caption_dropout_rate=0.0,
    caption_dropout_every_n_epochs=0,
    flip_aug=False,
    color_aug=False,
    num_workers=0,
    random_crop=False,
)
