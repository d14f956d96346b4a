"""The REST service: wire format and nothing else."""
