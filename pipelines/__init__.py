"""The pipeline that turns videos into cookgen/1 shards. Run it with `python -m pipelines`."""
