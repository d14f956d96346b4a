"""Answers as tables and text for people, one module per kind of answer."""
