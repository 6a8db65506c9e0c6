"""The loop, optimisers, checkpoints, health and progress."""
