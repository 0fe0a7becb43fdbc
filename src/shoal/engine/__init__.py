"""Inference: scheduler, cache blocks, sampling, streaming, runners."""
