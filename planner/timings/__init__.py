"""Measured timings at the command line: what is stored, whether it is possible, what an import or export did."""
