"""Tables of measured kernels as kernel calls, row by row: what the models are fitted on and scored by."""
