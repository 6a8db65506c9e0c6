"""From any feature extractor to any network: clusters, labels, student."""

from gnothi.transfer.clusters import Codebook, cluster, stability

__all__ = ["Codebook", "cluster", "stability"]
