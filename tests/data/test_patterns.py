import pytest
from tars import file, names, uneven, write

from gnothi.contracts import DataError
from gnothi.data import open as open_data
from gnothi.data import splits
from gnothi.data.patterns import braces


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNOTHI_CACHE", str(tmp_path / "cache"))


# ---- patterns ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-{000..003}.tar", ["a-000.tar", "a-001.tar", "a-002.tar", "a-003.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{08..10}", ["08", "09", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{x}{}", ["{x}{}"]),
        ("{x}-{1..2}", ["{x}-1", "{x}-2"]),
    ],
)
def test_braces_mean_what_they_mean_to_a_shell(text, expected):
    assert braces(text) == expected


def test_a_pattern_for_too_many_files_is_refused_before_they_are_listed():
    for text in ("{0..999999999}", "{0..999}-{0..999}-{0..999}"):
        with pytest.raises(DataError, match="more than 100,000"):
            braces(text)


def test_braces_globs_folders_and_lists_name_the_same_shards_in_natural_order(tmp_path):
    for i in (2, 10, 1):
        write(tmp_path / f"p{i}.tar", [(f"{i}.png", file(i))])
    expected = ["p1.tar/1.png", "p2.tar/2.png", "p10.tar/10.png"]
    for pattern in (f"{tmp_path}", f"{tmp_path}/p*.tar", f"{tmp_path}/p{{1,2,10}}.tar", f"{tmp_path}/p1.tar::{tmp_path}/p2.tar::{tmp_path}/p10.tar"):
        assert names(open_data(f"shards:{pattern}")) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{}/part-00.tax", r"part-00.tax: no such file; did you mean .*part-00.tar\?$"),
        ("{}/part-{{00..05}}.tar", r"part-03.tar and 2 more of 6: no such file"),
        ("{}/x*.tar", r"x\*.tar: no file matches$"),
        ("{}/empty", "holds no .tar files; gnothi pack DATA --out FOLDER makes them"),
        ("s3://b/a.tar", "shards are files or http:// and https:// URLs; copy others to the disk first"),
        ("pipe:rm -r x", "shards are files or http:// and https:// URLs"),
        ("http://host/*.tar", "a server does not list its files; write their numbers"),
        ("{}@test", "has no splits; give the test data by its own name"),
    ],
)
def test_a_pattern_that_names_nothing_says_the_nearest_right_thing(tmp_path, pattern, message):
    uneven(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        open_data("shards:" + pattern.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_folders_called_train_and_test_are_splits(tmp_path):
    write(tmp_path / "train" / "a.tar", [("1.png", file(1)), ("2.png", file(2))])
    write(tmp_path / "test" / "a.tar", [("3.png", file(3))])
    assert splits(f"shards:{tmp_path}") == ("train", "test")
    assert len(open_data(f"shards:{tmp_path}")) == 2 and names(open_data(f"shards:{tmp_path}@test")) == ["a.tar/3.png"]
