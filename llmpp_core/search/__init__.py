"""Searches under limits: evolution with a schedule of predictors, and its alternatives."""
