"""Models that generate or only read: decode steps, prompts, engines in their steady state and in runs."""
