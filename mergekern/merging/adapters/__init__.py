"""LoRA adapters merged into one LoRA adapter, from their factors: no base is needed, and it stays an adapter.

From the top: `merge` (what users call), `plan` (every tensor of the result, with all checks), `configuration`
(adapter_config.json), `reading` (adapters opened and matched), `combinations` (what each one is, on float64 arrays),
`elements` and `products` (the parts that combinations are made of), `registry` (their names; needs no torch).

To add a combination: a function in `combinations.py`, its row in `registry.py`, its row in `docs/adapters.md`, and a
value worked out by hand in `tests/merging/adapters/test_combinations.py`.
"""
