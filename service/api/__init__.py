"""The routes: a few lines each over predictors, registries and workers."""
