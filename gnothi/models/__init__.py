"""Backbones, heads and slow twins."""
