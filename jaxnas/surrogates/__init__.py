"""Surrogates: models of fitness that are trained inside a compiled search."""
