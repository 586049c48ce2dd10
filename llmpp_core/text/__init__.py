"""Text: vocabularies, corpora, batches."""
