"""From a run of ours to a command line of kohya's trainer, and back."""
