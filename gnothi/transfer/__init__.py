"""From any feature extractor to any network: clusters, labels, student."""

from gnothi.transfer.clusters import Codebook, cluster, stability
from gnothi.transfer.student import TransferSpec, baselines, check_baselines, measured, table_of_k, transfer, try_k

__all__ = ["Codebook", "TransferSpec", "baselines", "check_baselines", "cluster", "measured", "stability", "table_of_k", "transfer", "try_k"]
