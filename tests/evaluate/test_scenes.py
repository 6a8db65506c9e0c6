"""Images with boxes: PASCAL VOC's files and lists, COCO's, and what cannot be read of either."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from scenery import OBJECT, as_coco, scenery

from gnothi.contracts import DataError
from gnothi.evaluate.scenes import scenes, split_scenes


def test_voc_s_corners_become_edges(tmp_path):
    told = scenery(tmp_path, 5)
    found = scenes(str(tmp_path))
    assert found.classes == ("bar", "square") and len(found) == 5 and found.words == f"{tmp_path} (5 images)"
    for row, own in enumerate(told):
        assert found.boxes[row].tolist() == [list(map(float, o[2:])) for o in own]
        assert [found.classes[k] for k in found.kinds[row]] == [o[0] for o in own] and not found.aside[row].any()
        left, top, right, bottom = map(int, own[0][2:])
        patch = found.source.image(row)[:, top:bottom, left:right]
        assert (patch == patch[0, 0, 0]).all()  # the box is where the pixels are


def test_coco_s_file_says_the_same(tmp_path):
    told = scenery(tmp_path / "voc", 5)
    told[1][0] = (told[1][0][0], 1, *told[1][0][2:])
    as_coco(tmp_path / "coco/annotations/instances_train2017.json", told)
    shutil.copytree(tmp_path / "voc/JPEGImages", tmp_path / "coco/train2017")
    for name in ("coco", "coco/annotations/instances_train2017.json"):
        found, known = scenes(str(tmp_path / name)), scenes(str(tmp_path / "voc"))
        assert found.classes == known.classes and [found.source.name(i) for i in range(5)] == [known.source.name(i) for i in range(5)]
        for a, b in ((found.boxes, known.boxes), (found.kinds, known.kinds)):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert [a.tolist() for a in found.aside][1][0] is True and sum(a.sum() for a in found.aside) == 1


def test_lists_say_which_images_train_and_test(tmp_path):
    scenery(tmp_path, 8, lists=True)
    train, tested = split_scenes(str(tmp_path))
    assert [train.source.name(i) for i in range(len(train))] == [f"{i:02}.png" for i in range(6)] and len(tested) == 2
    assert "@trainval (6 images)" in train.words and "@test (2 images)" in tested.words
    assert len(scenes(f"{tmp_path}@test")) == 2
    with pytest.raises(DataError, match="@tset: no such list .*did you mean test"):
        scenes(f"{tmp_path}@tset")


def test_a_fifth_is_held_out_by_the_seed_where_nothing_says_which(tmp_path):
    scenery(tmp_path, 10)
    parts = [split_scenes(str(tmp_path), seed=s) for s in (0, 0, 1)]
    names = [[p.source.name(i) for i in range(len(p))] for pair in parts for p in pair]
    assert names[:2] == names[2:4] != names[4:] and len(names[1]) == 2 and sorted(names[0] + names[1]) == [f"{i:02}.png" for i in range(10)]
    assert "tested on 2 images held out (seed 0), trained on the other 8" in parts[0][0].words


def test_images_without_a_file_are_left_out_and_those_without_objects_stay(tmp_path):
    scenery(tmp_path, 6)
    (tmp_path / "Annotations/00.xml").unlink()
    (tmp_path / "Annotations/01.xml").write_text("<annotation></annotation>")
    found = scenes(str(tmp_path))
    assert len(found) == 5 and found.boxes[0].shape == (0, 4) and "1 without a file left out" in found.words


def test_classes_of_the_test_are_those_of_the_training(tmp_path):
    scenery(tmp_path / "a", 6)
    told = scenery(tmp_path / "b", 6, seed=1)
    train, tested = split_scenes(str(tmp_path / "a"), str(tmp_path / "b"))
    assert tested.classes == train.classes and len(tested) == 6
    path = tmp_path / "b/Annotations/03.xml"
    path.write_text(path.read_text().replace(told[3][0][0], "sqare"))
    with pytest.raises(DataError, match="has boxes of 'sqare', a class that no training image shows; did you mean square"):
        split_scenes(str(tmp_path / "a"), str(tmp_path / "b"))


def test_tags_are_1_where_something_is_shown_and_unknown_where_all_of_it_is_difficult(tmp_path):
    scenery(tmp_path, 2)
    text = "".join(OBJECT.format(name, difficult, 1, 1, 5, 5) for name, difficult in (("bar", 1), ("bar", 0), ("square", 1)))
    (tmp_path / "Annotations/00.xml").write_text(f"<annotation>{text}</annotation>")
    (tmp_path / "Annotations/01.xml").write_text("<annotation></annotation>")
    assert scenes(str(tmp_path)).tags().tolist() == [[1, -1], [0, 0]]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda p: shutil.rmtree(p / "Annotations"), "has no boxes: neither a folder Annotations"),
        (lambda p: (p / "Annotations/02.xml").write_text("<annotation>"), "02.xml is not a PASCAL VOC file"),
        (
            lambda p: (p / "Annotations/02.xml").write_text((p / "Annotations/02.xml").read_text().replace("<xmax>", "<xmax>-")),
            "02.png: a box must have",
        ),
        (lambda p: [f.write_text("<annotation></annotation>") for f in (p / "Annotations").iterdir()], "not one box in 4 .xml files"),
        (lambda p: [f.rename(f.with_name("x" + f.name)) for f in list((p / "Annotations").iterdir())], "no image has a .xml file of its name"),
    ],
)
def test_a_broken_voc_folder_is_one_line(tmp_path, change, line):
    scenery(tmp_path, 4)
    change(tmp_path)
    with pytest.raises(DataError, match=line) as caught:
        scenes(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_broken_coco_file_is_one_line(tmp_path):
    told = scenery(tmp_path, 4)
    path = tmp_path / "JPEGImages/instances.json"
    as_coco(path, told)
    whole = json.loads(path.read_text())
    for change, line in (
        ({"annotations": []}, "names 4 images and no box"),
        ({"categories": []}, "is not a COCO file of boxes: KeyError"),
        ({"images": [*whole["images"], {"id": 1, "file_name": "x.png"}]}, "names 1 images that .*JPEGImages does not hold, such as x.png"),
        ({"images": [{"id": i["id"], "file_name": "y" + i["file_name"]} for i in whole["images"]]}, "such as y00.png, lie neither beside it"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=line):
            scenes(str(path))
    path.write_text("{")
    for name, line in ((path, "is not a COCO file"), (tmp_path / "x.json", "no such file"), (tmp_path / "nothing", "no such folder; boxes need")):
        with pytest.raises(DataError, match=line):
            scenes(str(name))
    (path.parent / "other.json").write_text("{}")
    with pytest.raises(DataError, match="holds 2 .json files; name one of them"):
        scenes(str(path.parent))
