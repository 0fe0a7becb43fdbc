"""Judging checkpoints: generated tasks with exact answers, intervals, model cards."""
