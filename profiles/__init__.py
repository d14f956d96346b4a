"""What is known: hardware, models, framework stacks and measured or fitted timings, each with its source.

The lowest layer: it imports nothing from the other three packages.
"""
