"""Checkpoints on disk: safetensors, GGUF, FP8 blocks, hub names."""
