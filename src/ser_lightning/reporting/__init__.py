"""Tables and pictures of what a run did; independent of Lightning.

Colours: of token maps `token_maps.py`, of their agreement and of runs `figures.py` and `look.py`.
"""
