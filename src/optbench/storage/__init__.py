"""Store runs: names in a run's folder, atomic files, the lock, hashes, provenance."""
