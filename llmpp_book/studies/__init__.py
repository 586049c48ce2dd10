"""The studies of this book: its tables below results/, how they are measured and read."""
