"""Predictors that need no network: baselines, the distilled predictor, partial dependence."""
