"""Searching by an encoder: the images most like some image, near duplicates, and images that are like nothing else."""

from gnothi.search.gallery import Gallery, gallery
from gnothi.search.odd import Odd, odd
from gnothi.search.page import write
from gnothi.search.similar import Answer, Found, Neighbour, similar

__all__ = ["Answer", "Found", "Gallery", "Neighbour", "Odd", "gallery", "odd", "similar", "write"]
