"""From shard sets to batches: a pure order of samples, two decoding backends and a prefetching loader."""
