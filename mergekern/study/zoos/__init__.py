"""Zoos to try mergekern on: small encoders, pretrained and then fine-tuned on many tasks from one base."""
