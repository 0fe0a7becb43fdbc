"""Tuning: adapting a model to a task, by examples, by a teacher, by preferences and by rewards."""
