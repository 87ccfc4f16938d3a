"""For every test: no example of hypothesis fails for its time, which is the machine's business."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
