"""Reading shard sets. Importing this does not import torch."""
