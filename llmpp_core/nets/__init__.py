"""Transformers and supernets: built, trained, evaluated, and asked as predictors."""
