"""preprocess: raw clinical files to shard sets."""
