"""Notebooks run into pages, with a record of each run, and the scorecard of claims."""
