"""From a handful of trained networks, of any declared space, to the next ones to train."""
