"""The pipeline-partition problem, and its solvers."""
