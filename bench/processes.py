"""Processes, as the scripts beside this one look at them."""

import glob


def tree(pid):
    """A process and all that came of it."""
    yield pid
    for children in glob.glob(f"/proc/{pid}/task/*/children"):
        with open(children) as text:
            for child in text.read().split():
                yield from tree(int(child))
