"""Break lines that numbers depend on, one at a time, and see whether the tests notice."""
