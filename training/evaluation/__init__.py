"""How well a model reports: cases, measures, tables."""
