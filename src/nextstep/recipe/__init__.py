"""Recipes: one YAML file fully describes a training run."""
