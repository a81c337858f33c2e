"""A base -> its own pictures of a class, in kohya's layout, for regularization."""
