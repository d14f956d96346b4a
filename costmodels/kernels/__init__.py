"""Kernel cost models: arrays of kernel calls in, seconds with their basis out."""
