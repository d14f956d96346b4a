"""Configuration files and launch lines that make a training framework run a plan; one module per target."""
