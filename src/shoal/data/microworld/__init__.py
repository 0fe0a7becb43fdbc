"""A seeded, endless generator of a small English and Japanese world."""
