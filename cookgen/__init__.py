"""cookgen: long narrative videos for training, from raw cooking videos.

from cookgen import load_split

for narrative in load_split("train", "shards"):
    for step in narrative.steps:
        print(step.action, step.caption, step.frames().shape)
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
