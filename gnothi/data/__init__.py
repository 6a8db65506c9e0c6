"""Sources of images: arrays, photos, folders, torchvision's sets, any Dataset; inspection, splits and order."""

from gnothi.data.arrays import ArraySource, Subset
from gnothi.data.dataset import DatasetSource, from_dataset
from gnothi.data.folder import FolderSource
from gnothi.data.holdout import holdout
from gnothi.data.inspection import Inspection, inspect, pixels
from gnothi.data.open import DataSpec, open, splits
from gnothi.data.order import Order
from gnothi.data.packing import pack
from gnothi.data.photos import photo_tiles
from gnothi.data.shards import ShardSource
from gnothi.data.tiles import TileSource

__all__ = [
    "ArraySource", "DataSpec", "DatasetSource", "FolderSource", "Order", "ShardSource", "Subset", "TileSource",
    "Inspection", "from_dataset", "holdout", "inspect", "open", "pack", "photo_tiles", "pixels", "splits",
]  # fmt: skip
