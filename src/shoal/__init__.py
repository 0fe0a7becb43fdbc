"""Shoal: a DeepSeek-class language-model stack that people can afford."""

__version__ = "0.1.0"
