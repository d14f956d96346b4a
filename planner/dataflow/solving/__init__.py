"""The scheduling problem of a workflow: simulation, bounds, exact search and annealing."""
