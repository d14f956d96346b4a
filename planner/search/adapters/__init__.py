"""Other optimisers on a search space, and search spaces for other optimisers; each needs the extra `search`."""
