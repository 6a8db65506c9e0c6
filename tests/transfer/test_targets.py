from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnothi.contracts import DataError
from gnothi.data import ArraySource, Subset
from gnothi.data import open as open_data
from gnothi.data.balanced import Balanced
from gnothi.data.targets import Targets, keys
from gnothi.randomness import generator
from gnothi.transfer.clusters import Codebook, Fit
from gnothi.transfer.labels import feature_targets, pseudo_labels, readable, shuffled


def images(n: int = 12, seed: int = 0) -> np.ndarray:
    return torch.randint(256, (n, 3, 8, 8), generator=generator(seed, "images"), dtype=torch.uint8).numpy()


def book(k: int = 3) -> Codebook:
    return Codebook(torch.eye(k), torch.ones(k, dtype=torch.int64), Fit(0, k, k, k, 0, 0.0))


def vectors(labels: list[int], k: int = 3) -> np.ndarray:
    return np.eye(k, dtype=np.float32)[labels]


def told(targets: Targets, source: object) -> list[int]:
    return targets.tensors["index"][targets.rows(source)][:, 0, 0].tolist()  # type: ignore[arg-type]


# ---- found by the image --------------------------------------------------------------------------
def test_images_keep_their_labels_in_another_order_and_in_a_part() -> None:
    x, labels = images(), [i % 3 for i in range(12)]
    targets = pseudo_labels([book()], [vectors(labels)], ArraySource(x))
    order = torch.randperm(12, generator=generator(1, "order")).numpy()
    assert told(targets, ArraySource(x)) == labels
    assert told(targets, ArraySource(x[order])) == [labels[i] for i in order]
    assert told(targets, Subset(ArraySource(x), [7, 2, 9])) == [labels[i] for i in (7, 2, 9)]


def test_files_are_known_by_their_paths_and_not_by_their_place(tmp_path: Path) -> None:
    for i, name in enumerate(["b/one", "b/two", "a/one"]):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(images()[i].transpose(1, 2, 0)).save(path)
    source = open_data(str(tmp_path))
    labels = {source.name(row): row for row in range(3)}
    targets = pseudo_labels([book()], [vectors([0, 1, 2])], source)
    Image.fromarray(images()[5].transpose(1, 2, 0)).save(tmp_path / "a" / "0.png")
    grown = open_data(str(tmp_path))
    known = [row for row in range(4) if grown.name(row) in labels]
    assert told(targets, Subset(grown, known)) == [labels[grown.name(row)] for row in known]
    with pytest.raises(DataError, match=r"says nothing of .*a/0\.png; gnothi transfer"):
        targets.rows(grown)


def test_images_alike_to_the_bit_have_keys_of_their_own() -> None:
    x = images(4)[[0, 1, 0, 0]]
    found = keys(ArraySource(x))
    assert len({k.tobytes() for k in found}) == 4
    assert found[0].tobytes() == keys(ArraySource(x[[1, 0]]))[1].tobytes()


def test_an_image_without_a_target_is_named_and_the_others_counted() -> None:
    targets = pseudo_labels([book()], [vectors([0] * 12)], ArraySource(images()))
    with pytest.raises(DataError, match="says nothing of row 0 and 11 more of 12 images"):
        targets.rows(ArraySource(images(seed=1)))


def test_targets_come_back_from_their_file(tmp_path: Path) -> None:
    source = ArraySource(images())
    targets = pseudo_labels([book()], [vectors([i % 3 for i in range(12)])], source)
    targets.write(tmp_path / "t.safetensors")
    again = Targets.read(tmp_path / "t.safetensors", "classes")
    assert told(again, source) == told(targets, source) and again.about == targets.about
    with pytest.raises(DataError, match="holds classes, and vectors are needed"):
        Targets.read(tmp_path / "t.safetensors", "vectors")
    with pytest.raises(DataError, match="no such file"):
        Targets.read(tmp_path / "u.safetensors", "classes")
    (tmp_path / "t.safetensors").write_bytes(b"broken")
    with pytest.raises(DataError, match="holds no targets"):
        Targets.read(tmp_path / "t.safetensors", "classes")


# ---- what they say -------------------------------------------------------------------------------
def test_images_that_cannot_be_read_have_no_cluster_and_others_must_have_whole_vectors() -> None:
    class Broken(ArraySource):
        def image(self, row: int, shrink: int = 1) -> torch.Tensor:
            if row == 2:
                raise DataError("row 2: broken")
            return super().image(row, shrink)

    class Named:
        name = "toy"

    x, source = vectors([0, 1, 2, 0, 1, 2] * 2), Broken(images())
    x[2] = np.nan
    assert readable(x, Named(), source).tolist() == [r for r in range(12) if r != 2]  # type: ignore[arg-type]
    share = pseudo_labels([book()], [x], source).tensors["share"][:, 0, 0]
    assert share.tolist() == [1.0, 1.0, 0.0] + [1.0] * 9
    x[5, 1] = np.inf
    with pytest.raises(DataError, match="gives row 5 a vector that is not finite"):
        readable(x, Named(), source)  # type: ignore[arg-type]


def test_soft_labels_share_among_the_nearest_of_each_codebook() -> None:
    x = np.array([[0.8, 0.6, 0.0]], dtype=np.float32)
    targets = pseudo_labels([book(), book()], [x, x], ArraySource(images(1)), temperature=0.5, nearest=2)
    assert targets.tensors["index"][0].tolist() == [[0, 1], [0, 1]]
    raw = np.exp(-np.array([0.4, 0.8]) / 0.5)  # squared distances
    np.testing.assert_allclose(targets.tensors["share"][0, 1], raw / raw.sum(), rtol=1e-5)


def test_shuffled_labels_keep_the_sizes_and_lose_the_images() -> None:
    source, labels = ArraySource(images(90)), [0] * 60 + [1] * 20 + [2] * 10
    targets = pseudo_labels([book()], [vectors(labels)], source)
    mixed = told(shuffled(targets, 0), source)
    assert sorted(mixed) == labels and mixed != labels
    assert mixed == told(shuffled(targets, 0), source) != told(shuffled(targets, 1), source)


def test_teachers_vectors_are_kept_of_unit_length() -> None:
    x = torch.randn(12, 5, generator=generator(0, "x")).numpy()
    targets = feature_targets([x, x[:, :2]], ArraySource(images()))
    assert targets.about["dims"] == [5, 2]
    np.testing.assert_allclose(targets.tensors["vectors.0"].float(), x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-3)


def test_vectors_on_the_disk_are_read_and_written_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        """Vectors that know how many rows were asked for at a time."""

        def __init__(self, x: np.ndarray) -> None:
            self.x, self.shape, self.most = x, x.shape, 0

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, rows: slice) -> np.ndarray:
            self.most = max(self.most, len(self.x[rows]))
            return self.x[rows]

    monkeypatch.setattr("gnothi.transfer.labels.BLOCK", 5)
    x, source = torch.randn(12, 5, generator=generator(0, "x")).numpy(), ArraySource(images())
    x[7] = np.nan
    asked = Asked(x)
    feature_targets([asked], source, scratch=tmp_path).write(tmp_path / "t.safetensors")  # type: ignore[list-item]
    found = Targets.read(tmp_path / "t.safetensors", "vectors").tensors["vectors.0"].float()
    np.testing.assert_allclose(found, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-3)
    assert asked.most == 5 and [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what memory no file backs")
def test_vectors_to_and_from_a_file_take_no_memory_of_the_process_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own() -> int:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["RssAnon"].split()[0]) * 1024

    monkeypatch.setattr("gnothi.transfer.labels.BLOCK", 256)
    n, width = 8000, 2048  # 31 MiB at half precision
    np.save(tmp_path / "x.npy", np.ones((n, width), dtype=np.float32))
    x, source = np.load(tmp_path / "x.npy", mmap_mode="r"), ArraySource(np.zeros((n, 3, 4, 4), dtype=np.uint8))
    feature_targets([x[:300]], Subset(source, range(300)), scratch=tmp_path).write(tmp_path / "first")  # what torch and numpy take once
    before = own()
    targets = feature_targets([x], source, scratch=tmp_path)
    targets.write(tmp_path / "t")
    assert own() - before < 12 * 2**20
    found = Targets.read(tmp_path / "t", "vectors").tensors["vectors.0"]
    assert float(found[torch.arange(0, n, 7)].float().sum()) > 0 and found.shape == (n, width)
    assert own() - before < 20 * 2**20  # a seventh was asked for


# ---- order ---------------------------------------------------------------------------------------
def test_a_balanced_epoch_gives_every_class_as_many_rows() -> None:
    """34 of each are drawn, then 2 of the 102 are cut."""
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    order = Balanced(labels, 100, 0)
    first, second = order.rows(0), order.rows(1)
    counts = torch.bincount(labels[first], minlength=3).tolist()
    assert sum(counts) == 100 and all(32 <= c <= 34 for c in counts)
    assert len(labels[first[:30]].unique()) == 3  # mixed, not class by class
    large = first[labels[first] == 0]
    assert len(large.unique()) == len(large)
    assert not torch.equal(first, second) and torch.equal(first, Balanced(labels, 100, 0).rows(0))


def test_a_balanced_order_leaves_rows_without_a_class_out() -> None:
    labels = torch.tensor([0, 1, -1, 0, 1, -1])
    assert {int(r) for step in range(6) for r in Balanced(labels, 3, 0).rows(step)} <= {0, 1, 3, 4}
