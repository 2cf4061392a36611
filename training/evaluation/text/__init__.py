"""Measures of report text beside its reference: those that count words, and models that read."""
