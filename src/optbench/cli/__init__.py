"""What can be typed: one module or package per command."""
