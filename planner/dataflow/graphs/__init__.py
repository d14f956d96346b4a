"""Workflows as graphs: calls, models and data; those known by name, and files of one's own."""
