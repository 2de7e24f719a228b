"""Merging: one file a method, pure functions of one tensor; `apply` streams zoos through them."""
