"""A seeded, endless generator of a small English and Japanese world.

`generate.py` has the streams (`documents`, `stream`, `task_at`), `answers.py` the checker, `world.py` what families
draw from and the held-out rule, `words.py` and `plots.py` the vocabulary and the stories, `families/` the questions.
"""
