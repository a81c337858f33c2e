"""A folder of pictures -> captioned pictures, each in its bucket; all that is wrong at once."""

from optbench.dataset.buckets import bucket_chooser
from optbench.dataset.caption_settings import check_captions_for_length
from optbench.dataset.reading import check_dataset_options, read_dataset

__all__ = [
    "bucket_chooser",
    "check_captions_for_length",
    "check_dataset_options",
    "read_dataset",
]
