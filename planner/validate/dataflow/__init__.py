"""Experiments on workflows of several model calls, against what others measured."""
