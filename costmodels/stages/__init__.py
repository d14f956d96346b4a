"""Which layers and parameters sit on which pipeline stage."""
