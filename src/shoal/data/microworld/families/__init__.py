"""Families of questions with checkable answers; one file per kind of knowledge."""
