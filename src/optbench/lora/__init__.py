"""The trained network, its file, other people's adapters, resizing."""
