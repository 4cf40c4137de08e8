"""The page's numbers add up and come from the run, its text is safe whatever the records hold, equal runs give equal bytes."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import prep_sft_firefly_hit as prep
from sft_data.chatml import render_chatml
from sft_data.errors import UserError
from sft_data.report_page import WIDTH, differences, excerpt, log_edges, percent
from sft_data.report_tokens import _show, check_tokenizer, count_tokens, load_tokenizer

EVIL = "<script>alert(1)</script></details></p>\"'><img src=x onerror=alert(2)>&amp;"
VOID = {"meta", "line", "rect", "path"}


def body(seed: int, length: int) -> str:
    return "".join(chr(0x4E00 + (seed * 7919 + i * 104729) % 20000) for i in range(length))


def firefly(seed: int, **fields) -> dict:
    return {"instruction": body(seed, 30), "input": "", "output": body(seed + 500, 100), **fields}


def hit(seed: int) -> dict:
    texts = zip(
        ("system", "user", "assistant"),
        (body(1000 + seed, 30), body(2000 + seed, 30), body(3000 + seed, 100)),
        strict=True,
    )
    return {"text": render_chatml([{"role": role, "content": text} for role, text in texts])}


RECORDS = [
    *map(firefly, range(40)),
    firefly(0),  # a copy
    *(firefly(1, output=body(501, 100 + i)) for i in range(1, 4)),  # near-duplicates
    firefly(50, instruction=f"短{EVIL}"[:19]),
    firefly(51, output=f"答{EVIL}"),
    firefly(52, output=f"很抱歉,我无法回答这个问题。{EVIL}{body(52, 300)}"),
    firefly(53, output=f"{body(53, 400)}请拨打13812345678联系。{body(54, 400)}"),
    firefly(54, output=body(54, 300) + EVIL + "".join(f" https://a.cn/{i}" for i in range(6))),
    firefly(55, output=body(55, 300) + "<|endofutterance|>"),
    firefly(56, output="  "),
    {"instruction": EVIL},
]


class Tags(HTMLParser):
    """Elements that are not closed in order, what an element may load or run, and the ids."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.loads, self.ids, self.names, self.links = [], [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names.add(tag)
        self.loads += [
            (tag, key) for key in attrs if key.startswith("on") or key in ("src", "srcset", "data", "action")
        ]
        self.loads += [
            (tag, value) for key, value in attrs.items() if key.endswith("href") and not value.startswith("#")
        ]
        self.links += [attrs["href"][1:]] if "href" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run preparation on RECORDS in a folder of an awkward name; return (page, info)."""
    folder = tmp_path_factory.mktemp("report") / "<b>&"
    folder.mkdir()
    for name, records in (("f.jsonl", RECORDS), ("h.jsonl", [hit(i) for i in range(12)])):
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / name).write_text(text, encoding="utf-8")

    def run(*argv):
        inputs = ["--source", f"<i>x={folder / 'f.jsonl'}:1", "--hit-jsonl", str(folder / "h.jsonl")]
        outputs = ["--out", str(folder / "mix.jsonl"), "--report", str(folder / "r.html")]
        if "--append" in argv:
            (folder / "r.html").unlink()
        else:
            argv = (*argv, "--overwrite")
        assert prep.main([*inputs, *outputs, "--workers", "1", "--drop-pii", "--skip-bad", *argv]) == 0
        info = json.loads((folder / "mix_dataset_info.json").read_text(encoding="utf-8"))
        return (folder / "r.html").read_text(encoding="utf-8"), info

    return run


USUAL = ("--near-dup-threshold", "8", "--eval-size", "0.2", "--total", "30", "--hit-ratio", "0.3")


def section(page: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', page, re.S)[1]


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def cards(page: str, reason: str) -> list[str]:
    (group,) = re.findall(rf"<details><summary>(?:{reason}) .*?</details>", section(page, "samples"), re.S)
    return re.findall(r"<article>.*?</article>", group, re.S)


def test_nothing_of_a_record_becomes_markup_and_nothing_is_loaded(run):
    page, _ = run(*USUAL, "--drop-pattern", "<script>")
    tags = Tags(page)
    assert not tags.open
    assert not tags.loads
    assert not tags.names & {"script", "img", "i"}
    assert len(set(tags.ids)) == len(tags.ids)
    assert set(tags.links) <= set(tags.ids)
    assert "url(" not in page
    assert "<script>alert(1)" in words(section(page, "samples"))
    assert "<i>x" in words(section(page, "overview"))


def test_the_funnel_adds_up(run):
    for argv in (USUAL, ("--total", "60", "--hit-ratio", "0.6", "--on-shortage", "repeat"), ()):
        page, info = run(*argv)
        tables = section(page, "funnel").split("<h3>")[1:]
        given = {name: counts for name, counts in info["counts"].items() if counts["read"]}
        assert list(given) == ["hit", "<i>x"]
        for html, (name, counts) in zip(tables, given.items(), strict=True):
            rows = [re.findall(r"<td>(.*?)</td>", row, re.S) for row in re.findall(r"<tr.*?</tr>", html, re.S)[1:]]
            steps = {what: int(n.replace(",", "")) for what, n, *_ in rows}
            names = list(steps)
            kept = names.index("保留")
            dropped = [steps[what] for what in names[1:kept]]
            assert steps["读入"] == steps["保留"] + sum(dropped) == counts["read"]
            assert sorted(dropped) == sorted(counts["dropped"].values())
            after = sum(steps[what] * (1 if what.startswith("+") else -1) for what in names[kept + 1 : -1])
            assert steps["保留"] + after == steps["写出训练"] == info["allocated"][name]


def test_equal_runs_give_equal_bytes(run):
    assert run(*USUAL)[0] == run(*USUAL)[0]


def test_a_sample_shows_where_it_is_and_what_it_was_dropped_for(run):
    page, info = run(*USUAL)
    (refusal,) = cards(page, "回答是拒答")
    assert f"f.jsonl:{RECORDS.index(next(r for r in RECORDS if '抱歉' in r.get('output', ''))) + 1}" in refusal
    assert "<mark>抱歉,我无法</mark>" in refusal
    (phone,) = cards(page, "含手机号")
    assert "<mark>13812345678</mark>" in phone
    assert len(words(phone)) < WIDTH + 200  # and yet it is in the middle of 800 characters
    (links,) = cards(page, "回答网址太多")
    assert links.count("<mark>https://</mark>") == 6
    assert "（空）" in cards(page, "回答为空")[0]
    assert "<mark>&lt;|endofutterance|&gt;</mark>" in cards(page, "含格式标记")[0]
    assert "字，应为 20–200" in cards(page, "指令太短")[0]
    assert "output" in cards(page, "无法读取")[0]
    reasons = {reason for counts in info["counts"].values() for reason in counts["dropped"]}
    assert section(page, "samples").count("<details>") == len(reasons)


def test_a_family_shows_the_kept_record_and_what_differs(run):
    page, _ = run(*USUAL)
    first = re.search(r"<details>.*?</details>", section(page, "families"), re.S)[0]
    assert "丢弃 3 条" in words(first)
    kept, *gone = re.findall(r"<article>.*?</article>", first, re.S)
    assert "f.jsonl:2" in words(kept)
    marked = [re.findall(r"<mark>(.*?)</mark>", card) for card in gone]
    assert sorted(marks for (marks,) in marked) == sorted(body(501, 100 + i)[100:] for i in (1, 2, 3))


def test_what_is_near_an_evaluation_record_is_shown_beside_it(run):
    page, info = run("--eval-size", "0.5")
    assert info["counts"]["<i>x"]["dropped"]["near_eval"]
    card = cards(page, "near_eval|与评测.*?")[0]
    assert "<b>评测</b>" in card
    assert re.search(r"f.jsonl:\d+ (相差 \d+ 位|指纹相同)", card)


def test_what_an_earlier_run_wrote_is_no_part_of_it(run):
    run(*USUAL)
    page, info = run("--append")
    assert f"输出中原有 {info['appended_to']} 条" in page
    assert any("mix.jsonl:" in card for card in cards(page, "in_out|.*已有.*?"))
    tiles = dict(re.findall(r"<div><b>([\d,]+)</b>(.*?)</div>", page))
    assert {what: int(n) for n, what in tiles.items()}["写出训练"] == sum(info["allocated"].values())


@given(st.text("甲乙丙<&", max_size=60), st.text("甲乙丙<&", max_size=60))
def test_differences_keep_the_texts_and_only_what_differs_is_highlighted(a, b):
    sides = differences(a, b)
    plain = [re.sub("<mark>.*?</mark>", "", side) for side in sides]
    assert "…" in plain[0] + plain[1] or plain[0] == plain[1]
    for text, side in zip((a, b), sides, strict=True):
        assert "…" in side or words(side) == text


@given(st.text("甲乙<&", max_size=900), st.data())
def test_an_excerpt_is_short_and_shows_what_it_is_about(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 50)))
    html = excerpt(text, [(start, end)])
    assert len(words(html)) <= WIDTH + 2
    assert words(html).strip("…") in text
    assert unescape(re.search("<mark>(.*?)</mark>", html)[1]) == text[start:end]


def test_a_bin_for_every_length():
    for top in (0, 1, 10, 12345, 65535):
        edges = log_edges(top)
        assert edges[0] == 1
        assert edges[-1] > top
        assert (np.diff(edges) > 0).all()


def test_what_is_rare_is_not_said_to_be_nothing():
    assert [percent(share) for share in (0, 1e-9, 0.0001, 0.1234, 1)] == ["0", "<0.001%", "0.010%", "12.3%", "100.0%"]


def test_tokens_are_those_of_the_models_template(tiny_minicpm):
    from transformers import AutoTokenizer

    conversations = [
        [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是一个中文智能助手。"}],
        [
            {"role": "system", "content": "规格严格，功夫到家。"},
            {"role": "user", "content": "学校有几个校区？\n请回答"},
            {"role": "assistant", "content": "有三个。 The quick fox"},
        ],
    ]
    tokenizer = AutoTokenizer.from_pretrained(tiny_minicpm)
    expected = [len(tokenizer.apply_chat_template(one, return_dict=False)) for one in conversations]
    assert count_tokens(conversations, load_tokenizer(str(tiny_minicpm))).tolist() == expected


@pytest.mark.parametrize(("long", "best"), [(0, 256), (1, 256), (2, 1024)])
def test_the_smallest_length_that_keeps_99_percent_whole_is_recommended(long, best):
    html = _show(np.array([256] * (100 - long) + [600] * long))
    assert f"max_seq_length = {best}：" in html
    (lost,) = re.findall(r"<td>256</td><td>(\d+)</td><td>.*?</td><td>(.*?)</td>", html)
    assert lost == (f"{long}", percent(344 * long / (256 * (100 - long) + 600 * long)))


def test_when_no_length_keeps_enough_the_one_that_would_is_named():
    assert "至少 9,000" in _show(np.array([100] * 50 + [9000] * 50))


def test_the_page_tells_token_lengths(run, tiny_minicpm):
    page, _ = run(*USUAL, "--tokenizer", str(tiny_minicpm))
    assert "统计了全部 30 条" in section(page, "tokens")
    assert not Tags(page).open


@pytest.mark.parametrize("kind", ["nowhere", "settings only", "not a tokenizer"])
def test_a_tokenizer_that_cannot_be_used_is_said_in_one_sentence(tmp_path: Path, kind):
    path = tmp_path / "model"
    if kind != "nowhere":
        path.mkdir()
        config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        (path / "config.json").write_text('{"model_type": "llama"}')
    if kind == "not a tokenizer":
        (path / "tokenizer.json").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"--tokenizer .*model：") as caught:
        check_tokenizer(str(path))
    assert "\n" not in str(caught.value)
