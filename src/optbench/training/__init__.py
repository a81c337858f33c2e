"""The loop, its noise and loss, validation, state and recovery, trackers."""
