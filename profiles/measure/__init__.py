"""Collectors: run kernels, collectives and whole steps on the device at hand and write down how long they took.

``collect`` is the way in. Of this package only ``backend`` imports PyTorch, and only when called, so that grids,
selection and statistics can be used and tested without it.
"""
