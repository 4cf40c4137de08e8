import json
from datetime import date, datetime, timedelta, timezone

import pytest

from LLM_data_gen.cost import (
    PRICES_FILE,
    cost_of,
    describe_money,
    estimate,
    is_peak,
    load_prices,
    price_of,
    usage_of,
)
from sft_data.errors import UserError

BEIJING = timezone(timedelta(hours=8))
QUIET = datetime(2026, 11, 28, 10, 0, tzinfo=BEIJING)  # a Saturday
BUSY = datetime(2026, 11, 26, 10, 0, tzinfo=BEIJING)  # a Thursday


def price_file(**changes):
    """Return the smallest file that uses every key; a change replaces a key of the provider."""
    peak_hours = {"time_zone": "+08:00", "weekdays": [1, 2, 3, 4, 5], "hours": ["09:00-12:00", "14:00-18:00"]}
    rates = {"input": 1, "cached_input": 0.02, "output": 4, "peak": {"input": 2, "cached_input": 0.04, "output": 8}}
    provider = {
        "name": "甲",
        "hosts": ["API.example.com"],
        "currency": "CNY",
        "source": "https://example.com/price",
        "peak_hours": peak_hours | {"holidays": ["2026-10-01"]},
        "models": [
            {"names": ["big-*", "old-name"], "page_date": "2026-11-01", **rates},
            {"names": ["big-mini*"], "input": 0.5, "output": 2, "page_date": "2026-11-01"},
        ],
    }
    return {"checked": "2026-11-26", "providers": [provider | changes]}


@pytest.fixture
def load(tmp_path):
    def write_and_load(data):
        path = tmp_path / "p.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return load_prices(path)

    return write_and_load


@pytest.fixture
def price(load):
    return price_of(load(price_file()), "https://api.example.com/v1", "big-one")


def test_the_projects_own_file_is_sound_and_knows_the_default_teacher():
    prices = load_prices()
    assert date.fromisoformat(prices.checked) >= date(2026, 11, 26)
    flash = price_of(prices, "https://api.deepseek.com", "deepseek-flash")
    million = {"prompt_tokens": 1_000_000, "cached_tokens": 0, "completion_tokens": 1_000_000}
    assert (flash.currency, cost_of(flash, million, QUIET), cost_of(flash, million, BUSY)) == ("CNY", 5, 10)
    for host, name, price in prices.entries:
        assert price_of(prices, f"https://{host}/v1", name.replace("20*", "2026-01-01")) is price
        assert price.source.startswith("https://")
        assert price.page_date <= prices.checked
        assert price.rates.cached_input <= price.rates.input < price.rates.output
    assert len({(host, name) for host, name, _ in prices.entries}) == len(prices.entries)


def test_price_needs_the_host_and_the_longest_name_that_fits(load):
    prices = load(price_file())
    assert price_of(prices, "https://api.example.com/v1", "Big-One").rates.input == 1
    assert price_of(prices, "https://api.example.com/v1", "big-mini-2").rates.input == 0.5
    assert price_of(prices, "https://api.example.com:8443", "old-name").rates.input == 1
    for url, model in [
        ("https://api.example.com", "old-name-2"),
        ("https://api.example.com", "big"),
        ("https://example.com", "big-one"),
        ("https://api.example.com.evil.org", "big-one"),
        ("http://127.0.0.1:8000/v1", "big-one"),
    ]:
        assert price_of(prices, url, model) is None


def test_local_addresses_cost_nothing_even_when_listed(load):
    assert price_of(load(price_file(hosts=["localhost"])), "http://localhost:8000/v1", "big-one") is None


def test_cached_tokens_are_part_of_the_prompt(price):
    usage = {"prompt_tokens": 1000, "cached_tokens": 400, "completion_tokens": 2000}
    # 600 x 1 + 400 x 0.02 + 2000 x 4 = 8608 millionths; twice that at the peak
    assert cost_of(price, usage, QUIET) == pytest.approx(0.008608)
    assert cost_of(price, usage, BUSY) == pytest.approx(0.017216)
    assert cost_of(price, {}, QUIET) == 0


def test_without_a_cached_price_cached_tokens_cost_as_much(load):
    mini = price_of(load(price_file()), "https://api.example.com", "big-mini")
    assert cost_of(mini, {"prompt_tokens": 1000, "cached_tokens": 1000}, BUSY) == pytest.approx(0.0005)
    assert not is_peak(mini, BUSY)  # the provider has peak hours, this model has no peak price


@pytest.mark.parametrize(
    ("at", "peak"),
    [
        ("2026-11-26T08:59:59+08:00", False),
        ("2026-11-26T09:00:00+08:00", True),
        ("2026-11-26T11:59:59+08:00", True),
        ("2026-11-26T12:00:00+08:00", False),
        ("2026-11-26T01:00:00+00:00", True),  # 9 in Beijing
        ("2026-11-25T20:00:00-05:00", True),  # the same moment in New York
        ("2026-11-26T10:00:00+00:00", False),  # 18 in Beijing
        ("2026-11-28T10:00:00+08:00", False),  # Saturday
        ("2026-11-29T21:00:00-05:00", True),  # Sunday evening in New York is Monday 10 in Beijing
        ("2026-10-01T10:00:00+08:00", False),  # a Thursday, and a holiday in the file
    ],
)
def test_peak_hours_are_those_of_the_providers_time_zone(price, at, peak):
    assert is_peak(price, datetime.fromisoformat(at)) is peak


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 7}, (9, 0, 7)),
        ({"prompt_tokens": 9, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 5}}, (9, 5, 7)),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}, (9, 4, 0)),
        ({"prompt_tokens": 9, "cached_tokens": 3, "completion_tokens": 7}, (9, 3, 7)),
        ({"input_tokens": 9, "output_tokens": 7, "input_tokens_details": {"cached_tokens": 2}}, (9, 2, 7)),
        ({"prompt_tokens": 9, "cached_tokens": 0, "prompt_tokens_details": {"cached_tokens": 5}}, (9, 5, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": None, "completion_tokens": None}, (9, 0, 0)),
        ({"prompt_tokens": "9", "completion_tokens": 7.0, "cached_tokens": True}, (0, 0, 7)),
        ({"prompt_tokens": -9, "completion_tokens": -1}, (0, 0, 0)),
        ({"prompt_tokens": 9, "cached_tokens": 50}, (9, 9, 0)),
        ({"prompt_tokens": 9, "prompt_tokens_details": [1]}, (9, 0, 0)),
        ({}, (0, 0, 0)),
        (None, (0, 0, 0)),
        ("usage", (0, 0, 0)),
    ],
)
def test_usage_in_all_its_dialects(usage, counts):
    names = ("prompt_tokens", "cached_tokens", "completion_tokens")
    assert usage_of(usage) == dict(zip(names, counts, strict=True))


def test_an_estimate_worked_by_hand(price):
    e = estimate(topics=100, n_per_topic=10, per_request=8, prompt_chars=500, thinking=False, price=price, at=QUIET)
    assert e.calls == 200  # 8 and 2 for each topic
    assert e.prompt_tokens == (60_000, 71_500, 91_000)  # 200 x 500 x 0.6 | x 0.65 x 1.1 | x 0.7 x 1.3
    # 1,000 samples x (350 x 0.6 + 20) | (420 x 0.65 + 30) x 1.1 | (1150 x 0.7 + 40) x 1.3
    assert e.completion_tokens == (230_000, 333_300, 1_098_500)
    assert e.cost == pytest.approx((0.06 + 0.92, 0.0715 + 1.3332, 0.091 + 4.394))
    assert e.currency == "CNY"


def test_an_estimate_counts_thinking_by_the_call_and_peak_prices(price):
    plain = estimate(10, 6, 8, 500, False, price, QUIET)
    thinking = estimate(10, 6, 8, 500, True, price, BUSY)
    more = [b - a for a, b in zip(plain.completion_tokens, thinking.completion_tokens, strict=True)]
    assert more == [5_000, 22_000, 104_000]  # 10 calls x 500 | 2,000 x 1.1 | 8,000 x 1.3
    assert estimate(10, 6, 8, 500, False, price, BUSY).cost == pytest.approx([2 * value for value in plain.cost])


def test_an_estimate_without_a_price_has_tokens_only():
    e = estimate(10, 6, 8, 500, False, None, QUIET)
    assert (e.calls, e.cost, e.currency) == (10, None, None)
    assert 0 < e.prompt_tokens.low < e.prompt_tokens.likely < e.prompt_tokens.high
    assert estimate(0, 6, 8, 500, True, None, QUIET).completion_tokens == (0, 0, 0)


@pytest.mark.parametrize(
    ("value", "currency", "text"),
    [
        (1.234, "CNY", "¥1.23"),
        (0.0042, "USD", "$0.0042"),
        (0, "CNY", "¥0.00"),
        (1234.5, "USD", "$1,234.50"),
        (0.00001, "CNY", "不到 ¥0.0001"),
        (2, "EUR", "2.00 EUR"),
    ],
)
def test_describe_money(value, currency, text):
    assert describe_money(value, currency) == text


MODEL = {"names": ["m"], "input": 1, "output": 2, "page_date": "2026-11-01"}
HOURS = {"time_zone": "+08:00", "weekdays": [1], "hours": ["09:00-12:00"]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{oops", "不是合法的 JSON（第 1 行）"),
        ("[" * 100_000, "不是合法的 JSON"),
        ([], "最外层"),
        ({"providers": []}, "缺少 checked"),
        ({"checked": "today", "providers": []}, "checked 应是"),
        ({"checked": "2026-11-26", "providers": {}}, "providers 应是"),
        ({"checked": "2026-11-26", "providers": ["x"]}, "providers 应是"),
        (price_file(price=1), "不认识 providers[0].price"),
        (price_file(hosts="api.example.com"), "providers[0].hosts 应是"),
        (price_file(currency=""), "providers[0].currency 应是"),
        (price_file(models=[{"names": ["m"]}]), "缺少 providers[0].models[0].input"),
        (price_file(models=[MODEL | {"input": "1"}]), "providers[0].models[0].input 应是"),
        (price_file(models=[MODEL | {"output": -1}]), "providers[0].models[0].output 应是"),
        (price_file(models=[MODEL | {"output": float("nan")}]), "providers[0].models[0].output 应是"),
        (price_file(models=[MODEL | {"cached_input": True}]), "providers[0].models[0].cached_input 应是"),
        (price_file(models=[MODEL, MODEL | {"peek": {}}]), "不认识 providers[0].models[1].peek"),
        (price_file(models=[MODEL | {"peak": {"input": 1}}]), "缺少 providers[0].models[0].peak.output"),
        (price_file(peak_hours=None), "providers[0].peak_hours 应是"),
        (price_file(peak_hours=HOURS | {"time_zone": "Asia/Shanghai"}), "peak_hours.time_zone 应写成"),
        (price_file(peak_hours=HOURS | {"weekdays": [0]}), "peak_hours.weekdays 应是"),
        (price_file(peak_hours=HOURS | {"hours": ["22:00-02:00"]}), "peak_hours.hours 里的 '22:00-02:00'"),
        (price_file(peak_hours=HOURS | {"hours": ["9-12"]}), "peak_hours.hours 里的 '9-12'"),
        (price_file(peak_hours=HOURS | {"holidays": ["国庆"]}), "peak_hours.holidays 里的日期"),
    ],
)
def test_a_wrong_file_is_told_by_file_and_key(load, tmp_path, data, said):
    with pytest.raises(UserError) as error:
        load(data)
    assert str(error.value).startswith(f"{tmp_path / 'p.json'}：")
    assert said in str(error.value)


def test_peak_price_without_peak_hours_is_refused(load):
    data = price_file()
    del data["providers"][0]["peak_hours"]
    with pytest.raises(UserError, match=r"models\[0\]\.peak 有高峰价"):
        load(data)


def test_missing_file_and_another_encoding(tmp_path):
    with pytest.raises(UserError, match="找不到价格文件"):
        load_prices(tmp_path / "none.json")
    (tmp_path / "gbk.json").write_bytes('{"about": "价格"}'.encode("gbk"))
    with pytest.raises(UserError, match="UTF-8"):
        load_prices(tmp_path / "gbk.json")


def test_the_file_says_what_its_keys_mean():
    about = json.loads(PRICES_FILE.read_text(encoding="utf-8"))["about"]
    assert all(key in about for key in ("names", "cached_input", "peak_hours", "weekdays", "holidays", "page_date"))
