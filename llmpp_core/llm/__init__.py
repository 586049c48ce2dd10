"""Language models as predictors: prompts, a client within a budget, answers, recordings."""
