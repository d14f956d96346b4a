"""From a question about a workflow to its answer: calls priced, placed and compiled, plans told and explained."""
