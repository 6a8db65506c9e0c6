"""Crops and colours of a batch, drawn and applied apart."""
