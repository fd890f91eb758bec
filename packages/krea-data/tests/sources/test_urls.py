import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from krea_data.sources import ingest
from krea_data.sources.download import Downloads, download, pool, refused
from krea_data.sources.entries import Unavailable
from krea_data.sources.urls import UrlSource

RULES = {"private": True, "pause_s": 0.001, "timeout_s": 20.0}


def listing(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def source_of(path, rules=None, **more):
    return UrlSource(name="web", files=(path,), rules=Downloads(**(RULES | (rules or {}))), **more)


def problem_of(server, path="/x.png", **rules):
    with pytest.raises(Unavailable) as caught:
        download(pool(1), server.url + path, Downloads(**(RULES | rules)))
    return caught.value


def test_rows_of_a_list_become_pictures(table, blobs, tmp_path, server, png):
    rows = []
    for n in range(30):
        server.answers[f"/{n}.png"] = (200, {"Content-Type": "image/png"}, png(n))
        row = {"url": f"{server.url}/{n}.png", "TEXT": f"number {n}", "license": "CC BY 4.0", "author": f"A{n}", "w": n}
        rows.append(row)
    path = listing(tmp_path / "list.parquet", rows)
    source = source_of(path)
    assert source.total() == 30
    assert ingest(table, blobs, source).new == 30
    found = {row.meta["stated"]["w"]: row for row in table.scan()}
    for n in range(30):
        assert blobs.get(found[n].blob) == png(n)
        assert found[n].meta["caption"] == f"number {n}"
        assert found[n].meta["licence"] == "CC-BY-4.0"
        assert found[n].meta["author"] == f"A{n}"
        assert found[n].meta["url"] == f"{server.url}/{n}.png"
        assert (found[n].meta["http_status"], found[n].meta["content_type"]) == (200, "image/png")
    assert all(len(row.id) == len("web/") + 32 for row in found.values())


def test_again_nothing_is_asked_for_and_a_sorted_list_is_the_same(table, blobs, tmp_path, server, png):
    rows = [{"url": f"{server.url}/{n}.png", "caption": str(n)} for n in range(10)]
    server.answers |= {f"/{n}.png": (200, {}, png(n)) for n in range(11)}
    path = listing(tmp_path / "a.parquet", rows)
    ingest(table, blobs, source_of(path))
    server.asked.clear()
    listing(path, [*reversed(rows), {"url": f"{server.url}/10.png", "caption": "10"}])
    result = ingest(table, blobs, source_of(path))
    assert (result.new, result.there) == (1, 10)
    assert server.asked == ["/10.png"]


def test_one_picture_with_two_captions_is_two_rows(table, blobs, tmp_path, server, png):
    server.answers["/a.png"] = (200, {}, png())
    rows = [{"url": f"{server.url}/a.png", "caption": text} for text in ("one", "two", "one")]
    result = ingest(table, blobs, source_of(listing(tmp_path / "a.parquet", rows)))
    assert (result.new, result.there) == (2, 1)
    assert {row.meta["caption"] for row in table.scan()} == {"one", "two"}


def test_columns_may_have_other_names(table, blobs, tmp_path, server, png):
    server.answers["/a.png"] = (200, {}, png())
    path = listing(
        tmp_path / "a.parquet", [{"id": "no-1", "link": f"{server.url}/a.png", "alttext": "hi", "by_whom": "me"}]
    )
    columns = {"alttext": "caption", "by_whom": "author"}
    ingest(table, blobs, source_of(path, column="link", key="id", columns=columns))
    (row,) = table.scan()
    assert (row.id, row.meta["caption"], row.meta["author"]) == ("web/no-1", "hi", "me")


def test_every_failure_is_a_row_with_its_reason_and_passing_ones_come_later(table, blobs, tmp_path, server, png):
    server.answers["/gone.png"] = (410, {}, b"")
    server.answers["/busy.png"] = (503, {}, b"")
    server.answers["/noai.png"] = (200, {"X-Robots-Tag": "noai"}, png())
    server.answers["/zero.png"] = (200, {}, b"")
    urls = [f"{server.url}/{name}.png" for name in ("gone", "busy", "noai", "zero")]
    urls += [
        "ftp://host/a.png",
        "file:///etc/passwd",
        "no url",
        "",
        None,
        "http://[broken",
        "http://127.0.0.1:1/closed.png",
    ]
    path = listing(tmp_path / "a.parquet", [{"url": url, "n": n} for n, url in enumerate(urls)])
    result = ingest(table, blobs, source_of(path))
    assert (result.new, result.without) == (len(urls), len(urls) - 1)
    said = {row.meta["stated"]["n"]: (row.meta.get("problem"), row.meta.get("problem_passes")) for row in table.scan()}
    assert said[0] == ("HTTP 410", False)
    assert said[1] == ("3 tries: HTTP 503; HTTP 503; HTTP 503", True)
    assert said[2] == ("its server asks not to use it (X-Robots-Tag: noai)", False)
    assert said[3] == (None, None)
    assert said[4] == said[5] == said[6] == ("this is no http or https URL", False)
    assert said[7] == said[8] == ("the list has no URL for it", False)
    assert "no URL" in said[9][0]
    assert "no connection" in said[10][0]
    assert said[10][1] is True
    server.answers["/busy.png"] = (200, {}, png(5))
    server.asked.clear()
    result = ingest(table, blobs, source_of(path))
    assert (result.new, result.still) == (1, 1)
    assert server.asked == ["/busy.png"]


def test_what_passes_is_tried_again_at_once(server, png):
    left = [(503, {}, b""), (429, {"Retry-After": "0"}, b""), (200, {}, png(1))]
    server.answers["/x.png"] = lambda handler: left.pop(0)
    assert download(pool(1), server.url + "/x.png", Downloads(**RULES)).data == png(1)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 206])
def test_what_does_not_pass_is_asked_for_once(server, status):
    server.answers["/x.png"] = (status, {}, b"")
    problem = problem_of(server)
    assert (problem.reason, problem.passing, len(server.asked)) == (f"HTTP {status}", False, 1)
    assert problem.meta["http_status"] == status


def test_size_limits_hold_with_and_without_a_stated_length(server):
    server.answers["/x.png"] = (200, {}, b"x" * 2000)
    assert problem_of(server, bytes_limit=1000).reason == "it has 2000 bytes, which is over the limit of 1000"

    def endless(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        for _ in range(5000):
            handler.wfile.write(b"x" * 1000)

    server.answers["/x.png"] = endless
    assert problem_of(server, bytes_limit=100_000).reason == "it has more than 100000 bytes, which is the limit"
    import gzip

    server.answers["/x.png"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 10_000_000))
    assert "limit" in problem_of(server, bytes_limit=100_000).reason


def test_a_server_that_drips_or_hangs_is_given_up(server):
    def drips(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "200")
        handler.end_headers()
        for _ in range(200):  # whole after 10 s
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.answers["/x.png"] = drips
    problem = problem_of(server, tries=1, timeout_s=0.4)
    assert problem.passing
    assert "no end" in problem.reason or "timed out" in problem.reason
    server.answers["/x.png"] = lambda handler: time.sleep(30)
    assert "timed out" in problem_of(server, tries=1, timeout_s=0.3).reason


def test_a_connection_that_is_cut_is_tried_again(server, png):
    calls = []

    def cut(handler):
        calls.append(1)
        if len(calls) > 1:
            return 200, {}, png(2)
        handler.send_response(200)
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        handler.wfile.write(b"x" * 100)
        handler.close_connection = True
        return None

    server.answers["/x.png"] = cut
    assert download(pool(1), server.url + "/x.png", Downloads(**RULES)).data == png(2)
    calls.clear()
    assert "after 100 bytes" in problem_of(server, tries=1).reason


def test_redirects_are_followed_and_looked_at(server, png):
    server.answers["/x.png"] = (302, {"Location": "/y.png"}, b"")
    server.answers["/y.png"] = (301, {"Location": f"{server.url}/z.png"}, b"")
    server.answers["/z.png"] = (200, {}, png(3))
    found = download(pool(1), server.url + "/x.png", Downloads(**RULES))
    assert (found.data, found.meta["moved_to"]) == (png(3), f"{server.url}/z.png")
    server.answers["/x.png"] = (302, {"Location": "/x.png"}, b"")
    assert "more than 5 redirects" in problem_of(server).reason
    server.answers["/x.png"] = (302, {"Location": "file:///etc/passwd"}, b"")
    assert problem_of(server).reason == "this is no http or https URL"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "0.0.0.0", "192.168.1.1"]
)
def test_addresses_inside_of_a_network_are_not_asked(host):
    with pytest.raises(Unavailable, match="inside of a network"):
        download(pool(1), f"http://{host}:9/x.png", Downloads())


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([], None),
        (["noindex"], None),
        (["noai"], "noai"),
        (["NoAI, noimageai"], "noai"),
        (["noindex, noimageai"], "noimageai"),
        (["all", "noimageai"], "noimageai"),
        (["googlebot: noai"], None),
        (["krea-data: noai"], "noai"),
        (["googlebot: noindex, krea-data: noai"], "noai"),
        (["otherbot: noindex, noai"], None),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        (["noaix"], None),
    ],
)
def test_robots_tags_are_read_as_they_are_meant(values, word):
    assert refused(values, ("noai", "noimageai"), "krea-data") == word


def test_robots_tags_are_obeyed_unless_told_otherwise(server, png):
    server.answers["/x.png"] = (200, {"X-Robots-Tag": ["noindex", "noimageai"]}, png())
    assert "noimageai" in problem_of(server).reason
    assert download(pool(1), server.url + "/x.png", Downloads(**RULES, refusals=())).data == png()
    assert "noindex" in problem_of(server, refusals=("noindex",)).reason
    assert {head["user-agent"] for head in server.heads} == {"krea-data"}


def test_a_list_that_is_none_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        next(source_of(path).entries())
    listing(path, [{"link": "x"}])
    with pytest.raises(ValueError, match="no column 'url'; choose from link"):
        source_of(path).total()
    with pytest.raises(ValueError, match="one Parquet file"):
        UrlSource(name="w", files=())
    with pytest.raises(ValueError, match="tries 0"):
        Downloads(tries=0)


def test_a_list_that_is_damaged_inside_says_where_and_the_next_one_comes(table, blobs, tmp_path, server, png):
    server.answers["/a.png"] = (200, {}, png())
    one, two = (
        tmp_path / "a.parquet",
        listing(tmp_path / "b.parquet", [{"url": f"{server.url}/a.png", "caption": "last"}]),
    )
    rows = [{"url": f"{server.url}/a.png", "caption": f"{group}"} for group in range(3) for _ in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), one, row_group_size=1000, compression="NONE", use_dictionary=False)
    start = pq.ParquetFile(one).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(one.read_bytes())
    data[start : start + 400] = b"\xff" * 400
    one.write_bytes(data)
    rules = Downloads(**RULES)
    ingest(table, blobs, UrlSource(name="web", files=(one, two), rules=rules))
    assert {row.meta.get("caption") for row in table.scan() if row.blob} == {"0", "1", "last"}
    (told,) = [row for row in table.scan() if not row.blob]
    assert told.id == "web/a.parquet/(broken at 2000)"
    assert told.meta["problem"].startswith("a.parquet cannot be read after row 2000: ")


def test_text_that_is_no_utf8_is_read_all_the_same(table, blobs, tmp_path, server, png):
    server.answers["/a.png"] = (200, {}, png())
    bad = pa.array([b"caf\xe9"]).view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": [f"{server.url}/a.png"], "caption": bad}), path)
    ingest(table, blobs, source_of(path))
    assert next(table.scan()).meta["caption"] == "caf\ufffd"
