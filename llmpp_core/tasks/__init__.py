"""Tasks: text, a search space and recipes under a name."""
