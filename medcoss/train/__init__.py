"""Pre-training of one stage: task (losses), engine (DeepSpeed), loop, checkpoint, metrics."""
