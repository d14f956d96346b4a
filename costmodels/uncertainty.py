"""Intervals: every one the planner states is meant to hold 90 % of the outcomes."""

NORMAL_90 = 1.645  # standard deviations either side of the mean that hold 90 % of a normal law
