"""cookgen: long narrative videos for training, from raw cooking videos.

from cookgen import load_split

for narrative in load_split("train", "shards"):
    for step in narrative.steps:
        print(step.action, step.caption, step.frames().shape)
"""

from cookgen.dataset.split import load_split

__version__ = "0.1.0"
__all__ = ["__version__", "load_split"]
