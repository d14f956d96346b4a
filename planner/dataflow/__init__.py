"""Workflows of several model calls: which GPUs each call gets, how it runs there, and when."""
