"""Kernels: each one function beside its plain reference, and the probe of this machine."""
