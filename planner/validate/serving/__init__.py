"""Published measurements of serving, priced and told page by page."""
