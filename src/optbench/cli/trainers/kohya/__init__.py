"""Convert a run into a command line of kohya's trainer, and back."""
