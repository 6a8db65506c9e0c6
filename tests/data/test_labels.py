import numpy as np
import pytest
from PIL import Image

from gnothi.contracts import DataError, SettingError
from gnothi.data import ArraySource, DataSpec
from gnothi.data import open as open_data


@pytest.fixture
def folder(tmp_path):
    for name in ("x/a.png", "x/b.png", "y/a.png", "y/c d.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 6)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def opened(folder, text, encoding="utf-8", **settings):
    (folder.parent / "t.csv").write_bytes(text.encode(encoding))
    return open_data(str(folder), settings=DataSpec(labels=str(folder.parent / "t.csv"), **settings))


def said(source):
    names = [None if source.label(row) is None else source.classes[source.label(row)] for row in range(len(source))]
    return {source.name(row): name for row, name in enumerate(names)}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_labels_and_groups_land_on_their_images(folder, delimiter, encoding, newline):
    rows = ["file,Label,patient", "c d.png,grün,p3", "x/a.png,ten,p1", "./x/b.png,two,p1", 'y\\a.png,"two",p2', ""]
    source = opened(folder, newline.join(rows).replace(",", delimiter), encoding)
    assert said(source) == {"x/a.png": "ten", "x/b.png": "two", "y/a.png": "two", "y/c d.png": "grün"}
    assert source.classes == ("grün", "ten", "two") and source.groups.tolist() == ["p1", "p1", "p2", "p3"] and source.notes == ()


def test_numbers_count_as_numbers_in_the_order_of_classes(folder):
    assert opened(folder, "file,grade\nx/a.png,10\nx/b.png,9\n").classes == ("9", "10")


def test_paths_above_the_folder_match_too(folder):
    source = opened(folder, f"file,label\nimages/x/a.png,one\n{folder.resolve()}/y/a.png,two\nother/images/x/b.png,three\n")
    assert said(source) == {"x/a.png": "one", "x/b.png": None, "y/a.png": "two", "y/c d.png": None}


def test_images_without_a_row_and_names_without_an_image_are_counted(folder):
    source = opened(folder, "file,label,group\nx/a.png,one,g\nx/b.png,,\ngone.png,one,g\n")
    assert [source.label(row) for row in range(4)] == [0, None, None, None]
    assert source.group(0) == "g" and len(set(source.groups.tolist())) == 4
    assert any(note.startswith("2 images have no row") for note in source.notes) and any("1 names" in n and "gone.png" in n for n in source.notes)


def test_columns_can_be_chosen(folder):
    text = "file,label,stage,ward\nx/a.png,l,s,w\n"
    source = opened(folder, text, label_column="stage", group_column="Ward")
    assert source.classes == ("s",) and source.group(0) == "w"
    with pytest.raises(SettingError, match="data.label_column: t.csv has no column 'stag'; did you mean stage?"):
        opened(folder, text, label_column="stag")


def test_groups_alone_leave_the_folders_as_classes(folder):
    source = opened(folder, "file,site\nx/a.png,s1\n")
    assert source.classes == ("x", "y") and source.group(0) == "s1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx/a.png,1\nx/a.png,2\n", "x/a.png stands in line 2 and in line 3 with different values"),
        ("file,label\nx/a.png,1\nimages/x/a.png,1\n", r"x/a.png \(line 2\) and images/x/a.png \(line 3\) are the same image"),
        ("file,label\na.png,1\n", "line 2: a.png is the end of 2 images' paths"),
        ("file,label\nx/a.png,1,2\n", "line 2 has 3 cells, the header has 2"),
        ("file,label\nq.png,1\n", "none of its 1 names is an image's; it has 'q.png', the images are such as 'x/a.png'"),
        ("file\nx/a.png\n", "at least two columns"),
        ("", "at least two columns, the file names first; found nothing"),
        ('file,label\n"x/a.png,1\n', "is not CSV"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused_with_its_line(folder, text, message):
    with pytest.raises(DataError, match=message):
        opened(folder, text)


def test_a_csv_that_is_missing_or_not_utf8_is_refused(folder):
    with pytest.raises(DataError, match="must be UTF-8, byte 11 is not"):
        opened(folder, "file,label\nü.png,1\n", "latin-1")
    with pytest.raises(DataError, match="nowhere.csv: cannot be read: No such file"):
        open_data(str(folder), settings=DataSpec(labels=str(folder / "nowhere.csv")))
    with pytest.raises(SettingError, match="data.label_column must name a column of t.csv, which has age, sex"):
        opened(folder, "file,age,sex\nx/a.png,1,2\n")


def test_the_same_row_twice_is_fine_and_the_fingerprint_follows_the_labels(folder):
    first = opened(folder, "file,label\nx/a.png,1\nx/a.png,1\n")
    assert first.label(0) == 0 and first.fingerprint() != opened(folder, "file,label\nx/b.png,1\n").fingerprint()


def test_rows_of_an_array_are_named_by_number(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "t.csv").write_text("row,label\nrow 1,one\n")
    source = open_data(str(tmp_path / "a.npy"), settings=DataSpec(labels=str(tmp_path / "t.csv")))
    assert isinstance(source, ArraySource) and source.labels.tolist() == [-1, 0, -1]
