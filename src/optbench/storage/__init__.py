"""A run's folder: names, atomic files, records, lock, provenance."""
