"""Settings of a network in which everything that can be off is off."""

from __future__ import annotations

from optbench.schema import NetworkOptions

PLAIN_NETWORK = NetworkOptions(
    name="lora",
    dim=4,
    alpha=2.0,
    conv_dim=None,
    conv_alpha=None,
    dropout=0.0,
    rank_dropout=0.0,
    module_dropout=0.0,
    scale_weight_norms=None,
    down_lr_weight=None,
    mid_lr_weight=None,
    up_lr_weight=None,
    block_lr_zero_threshold=0.0,
    block_dims=None,
    block_alphas=None,
    conv_block_dims=None,
    conv_block_alphas=None,
    rslora=False,
    dora=False,
    train_unet=True,
    train_text_encoder=True,
    weights=None,
    dim_from_weights=False,
)
