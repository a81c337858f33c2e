"""Read an image folder into captioned, bucketed images; report every problem together."""

from optbench.data.buckets import bucket_chooser
from optbench.data.folder import check_dataset_options, read_dataset
from optbench.data.holdout import HeldOut, hold_out, holdout_notice
from optbench.data.rules import check_captions_for_length

__all__ = [
    "HeldOut",
    "bucket_chooser",
    "check_captions_for_length",
    "check_dataset_options",
    "hold_out",
    "holdout_notice",
    "read_dataset",
]
