"""Fitting programs: run offline on measurements, their results are committed as data."""
