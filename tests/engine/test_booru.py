"""Pictures from a Gelbooru on this machine, with everything that can go wrong between here and there."""

from __future__ import annotations

import io
import json
import traceback

import pytest
from booru import KEY, USER, Gelbooru, Upload, picture
from PIL import Image
from servers import Fault

from engine.acquire.booru import Credentials, Search, credentials, query, search
from engine.acquire.booru_folder import CaptionWish, fetch, still_to_come
from engine.dataset.folders import listing
from knowledge.answers import PlainError

KEYS = Credentials(KEY, USER)


@pytest.fixture
def booru(monkeypatch, quick_network):
    with Gelbooru() as server:
        monkeypatch.setenv("GELBOORU_ENDPOINT", server.address)
        yield server


def look(tags="1girl", limit=100, ratings=("general",), keys=KEYS):
    return search(Search(tags, limit, ratings), keys, pause_seconds=0)


TAGS = CaptionWish()


def scrape(folder, captions=TAGS, **wanted):
    return fetch(still_to_come(look(**wanted), folder), folder, captions, pause_seconds=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def everything_kept(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_pictures_come_whole_with_captions_of_their_tags(booru, tmp_path):
    booru.uploads = [Upload(7, picture(7), "1girl ^_^ long_hair saber_(fate) highres rock_&amp;_roll it&#039;s")]
    done = scrape(tmp_path / "new")
    assert (done.pictures, done.captions, done.failed, done.interrupted) == (1, 1, {}, "")
    assert (tmp_path / "new" / "gelbooru-7.png").read_bytes() == picture(7)
    text = (tmp_path / "new" / "gelbooru-7.txt").read_text(encoding="utf-8")
    assert text == "1girl, ^_^, long hair, saber (fate), rock & roll, it's\n"
    assert listing(tmp_path / "new").others == ()


def test_captions_can_be_left_out_cleaned_and_begun_with_the_trigger_word(booru, tmp_path):
    scrape(tmp_path / "a", CaptionWish(blacklist=("Long hair",), trigger_word="sks"), limit=1)
    assert (tmp_path / "a" / "gelbooru-5.txt").read_text() == "sks, 1girl, smile\n"
    scrape(tmp_path / "b", None, limit=1)
    assert names(tmp_path / "b") == ["gelbooru-5.png"]


def test_a_search_goes_through_the_pages_until_it_has_enough(booru):
    booru.uploads = [Upload(n, picture(n % 3)) for n in range(1, 251)]
    found = look(limit=220)
    assert [post.id for post in found.posts] == list(range(250, 30, -1))
    assert found.total == 250
    assert [request.query["pid"] for request in booru.asked("index.php")] == [["0"], ["1"], ["2"]]
    assert len(look(limit=1000).posts) == 250


def test_a_post_that_comes_in_between_is_not_counted_twice(booru, monkeypatch):
    booru.uploads = [Upload(n, picture(0)) for n in range(1, 151)]
    real = booru._posts

    def and_a_new_one(one):
        answer = real(one)
        booru.uploads.append(Upload(1000 + len(booru.uploads), picture(1)))
        return answer

    monkeypatch.setattr(booru, "_posts", and_a_new_one)
    ids = [post.id for post in look(limit=1000).posts]
    assert len(ids) == len(set(ids)) == 150


def test_only_the_ratings_that_are_wanted_come(booru):
    ratings = ("general", "sensitive", "questionable", "explicit")
    booru.uploads = [Upload(n, picture(n), rating=rating) for n, rating in enumerate(ratings, start=1)]
    assert [post.id for post in look().posts] == [1]
    assert [post.id for post in look(ratings=("general", "sensitive")).posts] == [2, 1]
    assert [post.id for post in look(ratings=()).posts] == [4, 3, 2, 1]
    assert [post.id for post in look("1girl rating:explicit").posts] == [4]
    assert query(Search("a  b", 1, ("general", "sensitive"))) == "a b -rating:questionable -rating:explicit"


def test_a_server_that_sends_other_ratings_is_not_believed(booru, monkeypatch):
    booru.uploads = [Upload(1, picture(1)), Upload(2, picture(2), rating="explicit")]
    monkeypatch.setattr("booru._fits", lambda upload, wanted: True)
    found = look()
    assert [post.id for post in found.posts] == [1]
    assert found.left_out == {"rated explicit": 1}


def test_films_and_posts_without_a_file_are_left_out_and_counted(booru):
    booru.uploads = [
        Upload(1, picture(1)),
        Upload(2, b"film", named=".mp4"),
        Upload(3, b"film", named=".webm"),
        Upload(4, b"", more={"file_url": ""}),
        Upload(5, b"", more={"file_url": "file:///etc/passwd.png"}),
    ]
    found = look()
    assert [post.id for post in found.posts] == [1]
    assert found.left_out == {
        "of a kind that is not trained (.mp4)": 1,
        "of a kind that is not trained (.webm)": 1,
        "without a file": 1,
        "without a safe address": 1,
    }


def test_what_is_there_is_not_fetched_again_and_what_was_thrown_away_stays_away(booru, tmp_path):
    scrape(tmp_path, limit=3)
    (tmp_path / "gelbooru-4.png").unlink()
    (tmp_path / "gelbooru-5.txt").write_text("my own words")
    done = scrape(tmp_path, limit=5)
    assert done.pictures == 2
    assert [request.path for request in booru.asked("/images/")] == [f"/images/{n}.png" for n in (5, 4, 3, 2, 1)]
    assert names(tmp_path)[0] == "gelbooru-1.png"
    assert not (tmp_path / "gelbooru-4.png").exists()
    assert (tmp_path / "gelbooru-5.txt").read_text() == "my own words"


def test_a_manifest_that_was_cut_loses_one_line_at_most(booru, tmp_path):
    scrape(tmp_path, limit=3)
    manifest = tmp_path / ".lora-wizard" / "gelbooru.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    (tmp_path / "gelbooru-3.txt").write_text("my own words")
    assert scrape(tmp_path, limit=5).pictures == 3  # the one whose line was cut, and two new ones
    assert still_to_come(look(), tmp_path) == []
    assert (tmp_path / "gelbooru-3.txt").read_text() == "my own words"


def test_a_cut_download_goes_on_and_is_whole(booru, tmp_path):
    large = picture(9, width=4000)
    booru.uploads.append(Upload(9, large))
    booru.faults = [Fault("/images/9", cut_after=150_000, times=2)]
    assert scrape(tmp_path).pictures == 6
    assert [bool(request.headers.get("Range")) for request in booru.asked("/images/9")] == [False, True, True]
    assert (tmp_path / "gelbooru-9.png").read_bytes() == large


def test_a_picture_of_another_hash_is_thrown_away_and_the_rest_comes(booru, tmp_path):
    booru.uploads[2].md5 = "0" * 32
    done = scrape(tmp_path)
    assert done.pictures == 4
    assert "hash is another" in done.failed[3]
    assert "gelbooru-3.png" not in names(tmp_path)
    assert not (tmp_path / ".lora-wizard" / "incoming").exists()


@pytest.mark.parametrize(
    "content", [b"<html>please log in</html>", picture(1)[:900], b""], ids=["page", "half", "empty"]
)
def test_what_is_no_whole_picture_is_thrown_away(booru, tmp_path, content):
    booru.uploads[2] = Upload(3, content)
    done = scrape(tmp_path)
    assert done.pictures == 4
    assert "no whole picture" in done.failed[3]
    assert not (tmp_path / "gelbooru-3.png").exists()


def test_a_picture_gets_the_ending_of_what_is_in_it(booru, tmp_path):
    booru.uploads = [Upload(1, picture(1, "JPEG"), named=".png")]
    scrape(tmp_path)
    assert names(tmp_path) == ["gelbooru-1.jpg", "gelbooru-1.txt"]


def test_a_file_without_end_is_not_taken(booru, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.acquire.booru_folder.MOST_BYTES", 1000)
    assert "larger than" in scrape(tmp_path, limit=1).failed[5]
    assert names(tmp_path) == []


@pytest.mark.parametrize(("status", "seconds"), [(429, 1), (500, 0), (503, 0)])
def test_a_busy_server_is_asked_again_after_the_time_that_it_names(booru, tmp_path, status, seconds):
    headers = {"Retry-After": str(seconds)}
    booru.faults = [Fault("/images/4", status=status, headers=headers), Fault("index.php", status=status)]
    assert scrape(tmp_path, limit=2).pictures == 2
    assert [request.path for request in booru.asked("")] == [
        *("/index.php", "/index.php"),
        *("/images/5.png", "/images/4.png", "/images/4.png"),
    ]
    assert booru.times[2] - booru.times[1] >= seconds  # only what is answered stands in `times`


def test_one_picture_that_never_comes_does_not_hold_up_the_rest(booru, tmp_path):
    booru.faults = [Fault("/images/4", status=500, times=99)]
    done = scrape(tmp_path)
    assert (done.pictures, list(done.failed), done.interrupted) == (4, [4], "")


def test_who_asks_for_a_long_wait_is_left_in_peace_and_it_goes_on_later(booru, tmp_path):
    booru.faults = [Fault("/images/3", status=429, headers={"Retry-After": "3600"}, times=99)]
    done = scrape(tmp_path)
    assert done.pictures == 2
    assert "3600 s" in done.interrupted
    assert len(booru.asked("/images/")) == 3
    booru.faults.clear()
    assert scrape(tmp_path).pictures == 3


def test_a_server_that_is_gone_ends_it_and_what_came_is_kept(booru, tmp_path):
    booru.faults = [Fault("/images/[321]", status=502, times=99)]
    done = scrape(tmp_path)
    assert done.pictures == 2
    assert "status 502" in done.interrupted
    assert len(still_to_come(look(), tmp_path)) == 3


def test_requests_keep_their_distance(booru, tmp_path):
    found = search(Search("1girl", 4), KEYS, pause_seconds=0.15)
    fetch(found.posts, tmp_path, pause_seconds=0.15)
    between = [later - earlier for earlier, later in zip(booru.times[1:], booru.times[2:], strict=False)]
    assert len(between) == 3
    assert min(between) > 0.13


def test_the_key_goes_to_gelbooru_alone_and_nowhere_else(booru, tmp_path):
    scrape(tmp_path)
    (asked,) = booru.asked("index.php")
    assert (asked.query["api_key"], asked.query["user_id"]) == ([KEY], [USER])
    assert all("api_key" not in request.query for request in booru.asked("/images/"))
    assert KEY.encode() not in everything_kept(tmp_path)
    assert KEY not in repr((KEYS, look()))


def test_the_key_does_not_follow_to_another_host(booru):
    onward = f"{booru.elsewhere}/index.php?page=dapi&s=post&q=index&api_key={KEY}&user_id={USER}&tags=1girl"
    booru.faults = [Fault("index.php", status=302, headers={"Location": onward})]
    with pytest.raises(PlainError):
        look()
    first, second = booru.asked("index.php")
    assert "api_key" in first.query
    assert "api_key" not in second.query
    assert "user_id" not in second.query
    assert second.query["tags"] == ["1girl"]


def test_the_key_follows_on_the_same_host(booru):
    here = "/index.php?page=dapi&s=post&q=index&json=1&tags=1girl"
    booru.faults = [Fault("index.php", status=301, headers={"Location": here})]
    assert len(look().posts) == 5


@pytest.mark.parametrize(
    "fault",
    [
        Fault("index.php", status=401),
        Fault("index.php", status=403),
        Fault("index.php", status=404),
        Fault("index.php", status=500, times=99),
        Fault("index.php", status=429, headers={"Retry-After": "999"}),
        Fault("index.php", status=200, body=b"<html>"),
        Fault("index.php", status=200, body=b'{"success": "false", "message": "search down"}'),
        Fault("index.php", status=200, body=b'{"post": ["x"]}'),
        Fault("index.php", status=200, body=b"7"),
        Fault("index.php", status=302, headers={"Location": "ftp://nowhere/x"}),
        Fault("index.php", status=302, headers={"Location": "http://127.0.0.1:1/x"}, times=99),
        Fault("index.php", cut_after=5, times=99),
    ],
    ids=lambda fault: f"{fault.status}-{fault.body[:12]!r}",
)
def test_a_search_that_fails_says_so_in_words_without_the_key(booru, fault):
    booru.faults = [fault]
    with pytest.raises(PlainError) as told:
        look()
    assert str(told.value).endswith((".", "search down"))
    whole = "".join(traceback.format_exception(told.value))
    assert KEY not in whole
    assert "api_key" not in whole


def test_a_wrong_or_missing_key_is_explained(booru):
    with pytest.raises(PlainError, match=r"does not accept this API key.*GELBOORU_API_KEY"):
        look(keys=Credentials("wrong", USER))
    with pytest.raises(PlainError, match=r"wants to know who asks.*GELBOORU_API_KEY"):
        look(keys=Credentials())


def test_keys_come_from_the_environment_or_the_line_that_gelbooru_shows(monkeypatch):
    for name in ("GELBOORU_API_KEY", "GELBOORU_USER_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not credentials()
    line = credentials(f"&api_key={KEY}&user_id={USER}")
    assert (line.api_key, line.user_id) == (KEY, USER)
    monkeypatch.setenv("GELBOORU_API_KEY", KEY)
    with pytest.raises(PlainError, match="GELBOORU_USER_ID is missing") as told:
        credentials()
    assert KEY not in str(told.value)
    monkeypatch.setenv("GELBOORU_USER_ID", USER)
    assert credentials() == Credentials(KEY, USER)


def test_nothing_found_says_how_tags_are_written(booru):
    with pytest.raises(PlainError, match=r'no picture for "long hair" with the rating general\. Tags are written'):
        look("long hair")
    booru.uploads = [Upload(1, b"", named=".mp4")]
    with pytest.raises(PlainError, match=r"1 of a kind that is not trained \(.mp4\)"):
        look()


def test_the_manifest_says_where_each_picture_is_from(booru, tmp_path):
    scrape(tmp_path, limit=1)
    line = (tmp_path / ".lora-wizard" / "gelbooru.jsonl").read_text().strip()
    entry = json.loads(line)
    assert (entry["id"], entry["file"], entry["rating"]) == (5, "gelbooru-5.png", "general")
    assert entry["page"].endswith("?page=post&s=view&id=5")
    assert Image.open(io.BytesIO(picture(5))).size == (entry["width"], entry["height"])
