"""The stages of python/mergeability_study.py: scoring merged models, analysing what predicts the scores, findings."""
