"""HTTP over a trained run: what arrives is checked, queued, batched, answered by one model, and counted."""
