"""Price lists against tables of measured timings."""
