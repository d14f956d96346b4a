"""How short the steps of any pipeline of a family can be at best."""
