"""Recipes of mergekit: YAML files that say which models are merged, by which method, with which parameters.

`merge_recipe` reads such a file (`reading`, `schema`), finds its models (`models`), makes of every slice a zoo under
the names of the result (`slices`), and merges it with the values that the recipe has for each tensor (`parameters`).
"""
