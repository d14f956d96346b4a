"""Search engines over plan spaces."""
