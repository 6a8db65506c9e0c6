import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from gnothi import distributed
from gnothi.contracts import DataError, Pixels, RunError, SettingError, Source, Views
from gnothi.data.arrays import ArraySource
from gnothi.randomness import generator
from gnothi.views import photometric
from gnothi.views.batches import Batches, ViewsSpec
from gnothi.views.crops import CropSpec, cut
from gnothi.views.photometric import PhotometricSpec

COLOURS = PhotometricSpec(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.5, solarise=0.2)
LARGE = CropSpec(size=24, area=(0.2, 1.0), turns=True, photometric=COLOURS)
SMALL = CropSpec(size=12, area=(0.05, 0.3), photometric=COLOURS)
VIEWS = ViewsSpec(global_crops=(LARGE, LARGE), local_crops=(SMALL,))
PIXELS = Pixels(0.0, 255.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


class Files(Source):
    """JPEG files of mixed sizes; what was asked for is noted (in this process)."""

    channels, dtype = 3, torch.uint8

    def __init__(self, folder, n, keeps_to_shrink=True):
        self.folder, self.n, self.keeps_to_shrink, self.asked = folder, n, keeps_to_shrink, []

    def __len__(self):
        return self.n

    def name(self, row):
        return f"{row:03d}.jpg"

    def shape(self, row):
        try:
            with Image.open(self.folder / self.name(row)) as image:
                return image.height, image.width
        except OSError as error:
            raise DataError(f"{self.name(row)}: truncated JPEG") from error

    def image(self, row, shrink=1):
        self.asked.append((row, shrink))
        try:
            with Image.open(self.folder / self.name(row)) as image:
                if shrink > 1 and self.keeps_to_shrink:
                    image.draft(None, (image.width // shrink, image.height // shrink))
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
        except OSError as error:
            raise DataError(f"{self.name(row)}: truncated JPEG") from error


@pytest.fixture
def folder(tmp_path):
    """Twenty smooth photographs-like JPEG files of 40 to 200 pixels."""
    for row in range(20):
        g = generator(row, "file")
        height, width = torch.randint(40, 200, (2,), generator=g).tolist()
        coarse = torch.rand(1, 3, 6, 6, generator=g)
        image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / f"{row:03d}.jpg", quality=95)
    return tmp_path


def array(n=60, channels=3, size=32, seed=0):
    return ArraySource(torch.randint(0, 256, (n, channels, size, size), generator=generator(seed, "array"), dtype=torch.uint8))


def batches(source, views=VIEWS, **settings):
    return Batches(source, views, **({"batch": 8, "seed": 3, "pixels": PIXELS, "device": "cpu", "total": 12} | settings))


def same(a, b):
    """Whether two views agree in every bit of every tensor."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, tuple) else a == b


def joined(a: Views, b: Views) -> Views:
    """The views of two processes, one after the other."""
    return Views(
        tuple(torch.cat(pair) for pair in zip(a.images, b.images, strict=True)),
        *(torch.cat([getattr(a, k), getattr(b, k)], 1) for k in ("boxes", "flips", "turns")),
        n_global=a.n_global,
        index=torch.cat([a.index, b.index]),
        extra={k: joined(a.extra[k], b.extra[k]) for k in a.extra},
    )


def test_views_are_the_boxes_cut_coloured_and_normalised():
    source = array()
    views = batches(source)(5)
    assert [i.shape for i in views.images] == [(8, 3, 24, 24), (8, 3, 24, 24), (8, 3, 12, 12)]
    assert views.boxes.shape == (3, 8, 4) and views.n_global == 2 and len(views.index.unique()) == 8
    plain = CropSpec(size=24, area=(0.2, 1.0), turns=True)
    views = batches(source, ViewsSpec(global_crops=(plain,)))(5)
    crops = cut(source.array[views.index], views.boxes[0], 24, views.flips[0], views.turns[0])
    expected = (crops / 255 - torch.tensor(PIXELS.mean)[:, None, None]) / torch.tensor(PIXELS.std)[:, None, None]
    torch.testing.assert_close(views.images[0], expected, rtol=1e-6, atol=1e-6)
    assert views.turns.unique().numel() == 4 and 0 < int(views.flips.sum()) < 8


def test_colours_are_changed_between_unit_and_normalise_by_draws_of_the_joint_batch():
    source, bright = array(), PhotometricSpec(jitter=1.0, brightness=0.9)
    plain, changed = (batches(source, ViewsSpec(global_crops=(CropSpec(size=16, photometric=p),)))(2) for p in (PhotometricSpec(), bright))
    mean, std = torch.tensor(PIXELS.mean)[:, None, None], torch.tensor(PIXELS.std)[:, None, None]
    factors = photometric.draw(generator(3, "colours method", 2, 0), 8, bright).brightness
    expected = ((plain.images[0] * std + mean) * factors[:, None, None, None]).clamp(0, 1)
    assert torch.equal(plain.boxes, changed.boxes)
    torch.testing.assert_close(changed.images[0] * std + mean, expected, rtol=0, atol=1e-6)


def test_each_of_many_channels_gets_light_of_its_own():
    stains = PhotometricSpec(jitter=1.0, channel_brightness=0.9)
    source, pixels = array(channels=5), Pixels(0.0, 255.0, (0.0,) * 5, (1.0,) * 5)
    views = [ViewsSpec(global_crops=(CropSpec(size=16, photometric=p),)) for p in (PhotometricSpec(), stains)]
    plain, changed = (batches(source, v, pixels=pixels)(2).images[0] for v in views)
    factors = photometric.draw(generator(3, "colours method", 2, 0), 8, stains, 5).channel_brightness
    torch.testing.assert_close(changed, (plain * factors[:, :, None, None]).clamp(0, 1), rtol=0, atol=1e-6)


def test_crops_of_one_image_differ_and_steps_differ():
    views, later = batches(array())(0), batches(array())(1)
    assert not torch.equal(views.boxes[0], views.boxes[1]) and not torch.equal(views.images[0], views.images[1])
    assert not torch.equal(views.boxes, later.boxes) and not set(views.index.tolist()) & set(later.index.tolist())


def test_crops_of_one_image_get_different_colours():
    whole = CropSpec(size=16, area=(1, 1), aspect=(1, 1), flip=0, photometric=PhotometricSpec(jitter=1.0, brightness=0.9))
    first, second = batches(array(), ViewsSpec(global_crops=(whole, whole)))(2).images
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_auxiliary_gets_its_own_crops_and_moves_nothing_of_the_method():
    source = array()
    alone, beside = batches(source)(4), batches(source, extra={"jigsaw": (LARGE, SMALL)})(4)
    assert all(torch.equal(a, b) for a, b in zip(alone.images, beside.images, strict=True)) and torch.equal(alone.boxes, beside.boxes)
    asked = beside.extra["jigsaw"]
    assert [i.shape[-1] for i in asked.images] == [24, 12] and asked.boxes.shape == (2, 8, 4)
    assert not torch.equal(asked.boxes[0], beside.boxes[0]) and torch.equal(asked.index, beside.index)


@pytest.mark.parametrize("kind", ["array", "files"])
def test_two_processes_together_are_one_with_the_joint_batch(kind, folder, monkeypatch):
    source = array() if kind == "array" else Files(folder, 20)
    if kind == "files":
        (folder / "003.jpg").write_bytes(b"\xff\xd8 broken")
    extra = {"jigsaw": (SMALL,)}
    one = batches(source, extra=extra)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(batches(source, extra=extra))
    for step in (0, 1, 2):  # an epoch and the next one
        a, b = (part(step) for part in parts)
        assert len(a.index) == 4 and same(joined(a, b), one(step))


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(SettingError, match="training.batch must be a multiple of the 3 processes, got 8; 6 is"):
        batches(array())


@pytest.mark.parametrize("kind", ["array", "files"])
def test_resuming_at_a_step_gives_the_views_of_the_unbroken_run(kind, folder):
    source = array() if kind == "array" else Files(folder, 20)
    unbroken = batches(source)
    all_of_them = [unbroken(step) for step in range(6)]
    resumed = batches(source)
    assert all(same(resumed(step), all_of_them[step]) for step in (4, 5))
    assert same(resumed(1), all_of_them[1])  # steps may be asked for in any order


def test_loader_processes_give_every_bit_of_what_the_main_process_gives(folder):
    (folder / "007.jpg").write_bytes(b"\xff\xd8 broken")
    before = torch.get_rng_state()
    alone, helped = batches(Files(folder, 20)), batches(Files(folder, 20), workers=2, total=5)
    for step in (0, 1, 2, 3, 4, 2, 3, 7):  # to the end, back again, and beyond it
        assert same(alone(step), helped(step))
    assert helped.broken == alone.broken and "007.jpg" in helped.broken
    assert helped.waited > 0 and torch.equal(torch.get_rng_state(), before)
    helped.close()


@pytest.mark.slow
def test_loader_processes_started_afresh_give_the_same(folder, tmp_path):
    import multiprocessing

    method = multiprocessing.get_start_method()
    alone, helped = batches(SpawnSource()), batches(SpawnSource(), workers=1, total=2)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert same(alone(0), helped(0))
    finally:
        helped.close()
        multiprocessing.set_start_method(method, force=True)


class SpawnSource(Source):
    """Images made from their row number."""

    channels, dtype = 3, torch.uint8

    def __len__(self):
        return 16

    def image(self, row, shrink=1):
        return torch.randint(0, 256, (3, 30 + row, 40), generator=generator(row, "image"), dtype=torch.uint8)


def test_what_a_loader_process_gets_can_be_pickled(folder):
    loader = batches(Files(folder, 20)).cutter.items
    assert same(pickle.loads(pickle.dumps(loader))[3].images, loader[3].images)


def test_closing_ends_the_processes_and_a_later_call_starts_them_again(folder):
    helped = batches(Files(folder, 20), workers=2)
    first = helped(0)
    children = [p.pid for p in helped.cutter._ready._workers]
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL  # torch's would raise in the middle of a training step
    helped.close()
    assert not any(alive(pid) for pid in children)
    assert same(helped(0), first)
    helped.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split(") ")[1][0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_loader_process_outlives_an_interrupted_run(how, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"""
import signal, sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_batches import SpawnSource, batches
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background has it ignored
    b = batches(SpawnSource(), workers=2, total=10**6)
    b(0); print(*[p.pid for p in b.cutter._ready._workers], flush=True)
    for step in range(1, 10**6): b(step)
""")
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    children = [int(pid) for pid in run.stdout.readline().split()]
    assert len(children) == 2
    run.send_signal(how)
    run.wait(120)
    run.stdout.close()
    end = time.monotonic() + 30
    while any(alive(pid) for pid in children) and time.monotonic() < end:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in children)


def test_a_killed_loader_process_is_one_line(folder):
    helped = batches(Files(folder, 20), workers=1, total=10**6)
    helped(0)
    with pytest.raises(RunError, match="^a loader process ended unexpectedly.*fewer workers$"):
        os.kill(helped.cutter._ready._workers[0].pid, signal.SIGKILL)
        for step in range(1, 50):
            helped(step)


def test_a_broken_image_is_replaced_by_the_same_one_every_time_and_counted(folder):
    healthy = batches(Files(folder, 20))
    before = [healthy(step) for step in range(6)]
    (folder / "011.jpg").write_bytes(b"\xff\xd8 broken")
    image = (folder / "004.jpg").read_bytes()
    (folder / "004.jpg").write_bytes(image[: len(image) // 3])  # the header tells a shape, the pixels cannot be read
    first, second = batches(Files(folder, 20)), batches(Files(folder, 20))
    for step in range(6):
        a, b = first(step), second(step)
        assert same(a, b)
        hit = torch.isin(before[step].index, torch.tensor([4, 11]))
        for position in hit.nonzero()[:, 0].tolist():
            drawn = [int(torch.randint(20, (), generator=generator(3, "replacement", step, position, attempt))) for attempt in range(9)]
            assert a.index[position] == next(row for row in drawn if row not in (4, 11))
        assert not torch.isin(a.index, torch.tensor([4, 11])).any() and torch.equal(a.index[~hit], before[step].index[~hit])
        for ours, theirs in zip(a.images, before[step].images, strict=True):
            assert torch.equal(ours[~hit], theirs[~hit])
    met = sum(int((v.index == 11).sum()) for v in before)
    message, count = first.broken["011.jpg"]
    assert set(first.broken) == {"004.jpg", "011.jpg"} and message == "011.jpg: truncated JPEG" and count >= met > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_the_run_and_the_first_are_named(folder, workers):
    for row in (2, 5, 9, 14):
        (folder / f"{row:03d}.jpg").write_bytes(b"no picture")
    stopped = batches(Files(folder, 20), broken_fraction=0.1, workers=workers)
    with pytest.raises(RunError, match=r"^3 of \d+ images cannot be read.*data\.broken_fraction=0\.1.*: 0\d\d\.jpg: truncated JPEG; 0") as error:
        for step in range(4):
            stopped(step)
    assert "\n" not in str(error.value)
    tolerant = batches(Files(folder, 20), broken_fraction=0.2, workers=workers)
    for step in range(6):
        tolerant(step)
    assert len(tolerant.broken) == 4
    tolerant.close()


def test_two_broken_files_never_stop_a_run(folder):
    for row in (2, 5):
        (folder / f"{row:03d}.jpg").write_bytes(b"no picture")
    tolerant = batches(Files(folder, 20), broken_fraction=0.0)
    for step in range(4):
        tolerant(step)
    assert len(tolerant.broken) == 2


def test_a_folder_where_nothing_can_be_read_is_a_data_error(folder):
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="truncated JPEG; nor could"):
        batches(Files(folder, 20), broken_fraction=1.0)(0)


def test_images_are_read_once_at_the_smallest_resolution_that_covers_every_crop(folder):
    source, spec = Files(folder, 20), ViewsSpec(global_crops=(CropSpec(size=8, area=(0.4, 1.0)), CropSpec(size=10, area=(0.4, 1.0))))
    views = batches(source, spec)(0)
    assert [row for row, _ in source.asked] == views.index.tolist()
    for i, (_, shrink) in enumerate(source.asked):
        covers = [s for s in (1, 2, 4, 8) if (views.boxes[0, i, 2:] >= 8 * s).all() and (views.boxes[1, i, 2:] >= 10 * s).all()]
        assert shrink == max(covers, default=1)
    assert len({shrink for _, shrink in source.asked}) >= 2


def test_an_image_whose_size_only_its_pixels_tell_is_read_once_too():
    class Counted(SpawnSource):
        asked = []

        def image(self, row, shrink=1):
            self.asked.append(row)
            return super().image(row)

    views = batches(Counted())(0)
    assert Counted.asked == views.index.tolist()


def test_crops_of_a_shrunken_image_are_those_of_the_whole_one(folder):
    spec = ViewsSpec(global_crops=(CropSpec(size=8, area=(0.4, 1.0), turns=True),))
    small, whole = Files(folder, 20), Files(folder, 20, keeps_to_shrink=False)
    a, b = batches(small, spec)(0), batches(whole, spec)(0)
    assert max(shrink for _, shrink in small.asked) > 1 and torch.equal(a.boxes, b.boxes)
    unit = [v.images[0] * torch.tensor(PIXELS.std)[:, None, None] for v in (a, b)]
    difference = (unit[0] - unit[1]).abs().mean((1, 2, 3))  # of smooth images
    shifted = (unit[0] - unit[1].roll(1, -1)).abs().mean((1, 2, 3))  # by one pixel of the crop, for comparison
    assert difference.max() < 0.02 and shifted.min() > 0.1


def test_files_of_one_size_give_the_crops_of_the_array_up_to_rounding():
    source = array()

    class Rows(SpawnSource):
        def __len__(self):
            return len(source)

        def image(self, row, shrink=1):
            return source.image(row)

    spec = ViewsSpec(global_crops=(CropSpec(size=24, turns=True), CropSpec(size=12)))
    a, b = batches(source, spec)(3), batches(Rows(), spec)(3)
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.turns, b.turns) and torch.equal(a.index, b.index)
    for x, y in zip(a.images, b.images, strict=True):
        assert (x - y).abs().max() <= 0.501 / 255 / 0.2


def test_five_channels_of_16_bits_keep_more_than_8_bits_on_either_path():
    images = torch.randint(30000, 30100, (20, 5, 32, 32), generator=generator(1, "deep")).to(torch.uint16)
    source, pixels = ArraySource(images), Pixels(0.0, 65535.0, (0.0,) * 5, (1.0,) * 5)

    class Rows(SpawnSource):
        channels, dtype = 5, torch.uint16

        def image(self, row, shrink=1):
            return images[row]

    spec = ViewsSpec(global_crops=(CropSpec(size=16, turns=True),))
    for one in (source, Rows()):
        views = batches(one, spec, pixels=pixels)(0)
        crops = cut(images[views.index], views.boxes[0], 16, views.flips[0], views.turns[0])
        torch.testing.assert_close(views.images[0] * 65535, crops, rtol=0, atol=0.02)
        assert len((views.images[0] * 65535).round().unique()) > 20  # in 8 bits there would be one value


def test_an_operation_without_meaning_is_refused_before_any_image_is_read():
    with pytest.raises(SettingError, match=r"^views\.hue needs exactly 3 channels, got 5"):
        batches(array(channels=5))
    plain = ViewsSpec(global_crops=(CropSpec(size=16),))
    with pytest.raises(SettingError, match=r"^auxiliary\.rotation\.saturation needs at least 2 channels, got 1"):
        saturated = CropSpec(size=16, photometric=PhotometricSpec(jitter=1.0, saturation=0.2))
        batches(array(channels=1), plain, extra={"rotation": (saturated,)})


def test_the_memory_format_changes_the_layout_and_no_value():
    plain, last = batches(array())(0), batches(array(), channels_last=True)(0)
    assert all(i.is_contiguous(memory_format=torch.channels_last) for i in last.images)
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(plain.images, last.images, strict=True))
