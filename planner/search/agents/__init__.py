"""Agents that propose plans and learn from prices: annealing, baselines, and the spaces they walk."""
