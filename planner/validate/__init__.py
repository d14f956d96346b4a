"""Predicted against measured: published runs in, errors by source out."""
