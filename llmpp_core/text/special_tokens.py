"""Identifiers of the special tokens, the first of every vocabulary."""

PAD, BOS, EOS, UNK = range(4)
