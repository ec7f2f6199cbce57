"""Continual learning: stages of a run, intra-modal mixup, distillation, embeddings and rehearsal buffers."""
