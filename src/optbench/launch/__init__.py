"""Around a run: the guard, processes, workers, exit status."""
