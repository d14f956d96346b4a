"""Plans of published performance recipes, priced beside the best plan found."""
