"""The space of legal plans: candidates, dimension by dimension, thinned by the rules of frameworks."""
