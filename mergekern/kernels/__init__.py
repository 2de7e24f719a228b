"""The kernels: one folder each, with its formula, its float64 oracle and its implementations.

`dispatch` chooses the implementations for a device.
"""
