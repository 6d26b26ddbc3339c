"""Where videos come from: one module a source, each listing its videos in a fixed order."""
