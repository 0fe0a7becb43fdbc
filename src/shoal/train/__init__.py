"""Training: one loop for pre-training and SFT, optimisers, resumable state, reports."""
