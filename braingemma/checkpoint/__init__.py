"""Weights on disk: names, load, save, verify."""
