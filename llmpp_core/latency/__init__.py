"""Latency: measured, kept in tables, predicted."""
