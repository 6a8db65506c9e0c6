"""Anything that turns images into vectors, by name; its features on disk; and files of them."""

from gnothi.encoders.embed import embed
from gnothi.encoders.encoder import Encoder, load
from gnothi.encoders.features import features

__all__ = ["Encoder", "embed", "features", "load"]
