"""The network: config, counts, attention, MoE, MTP, checkpoints."""
