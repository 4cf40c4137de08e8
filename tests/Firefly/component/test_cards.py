"""Cards by name, and ZeRO's arithmetic by hand."""

import pytest

from Firefly.component.advice import ZERO
from Firefly.component.cards import Memory, Zero, find_card, read_zero, shard
from Firefly.component.errors import UserError

from ..conftest import ROOT


@pytest.mark.parametrize(
    ("text", "gib"),
    [("24", 24), ("24GiB", 24), ("23.5", 23.5), ("4090", 24), ("RTX 4090", 24), ("rtx3060", 12), ("A100-40", 40)],
)
def test_a_card_by_size_or_name(text, gib):
    assert find_card(text).gib == gib


def test_a_named_card_knows_its_speed():
    assert find_card("4090").tflops == 165
    assert find_card("A100-40").tflops == find_card("a100").tflops == 312
    assert find_card("24").tflops is None


@pytest.mark.parametrize("text", ["0", "-3", "9999", "rtx", "nan"])
def test_an_unknown_card_is_refused_with_the_list(text):
    with pytest.raises(UserError, match="A100-40"):
        find_card(text)


def test_the_configs_of_this_project_are_read_as_advised():
    for path, zero in ZERO.items():
        assert read_zero(str(ROOT / "Firefly" / path)) == zero
    assert read_zero(None) is read_zero({"zero_optimization": {"stage": 0}}) is None
    with pytest.raises(UserError, match="missing.json"):
        read_zero("missing.json")


def test_zero_divides_what_it_says():
    """A thousand weights in bf16, all trained: 2 + 2 bytes, and 8 of Adam's, and 4 of the float32 copy."""
    whole = Memory(weights=2000, gradients=2000, optimizer=8000, activations=500, trained=1000)
    nothing = {"offload_optimizer": False, "bucket": 0, "live": 0}
    assert shard(whole, Zero(1, **nothing), 4) == (Memory(2000, 2000, 3000, 500, 1000), 0)
    assert shard(whole, Zero(2, **nothing), 4) == (Memory(2000, 500, 3000, 500, 1000), 0)
    assert shard(whole, Zero(3, **nothing), 4) == (Memory(500, 500, 3000, 500, 1000), 0)
    assert shard(whole, Zero(2, bucket=0), 4) == (Memory(2000, 0, 0, 500, 1000), 12000 + 2000)
    assert shard(whole, Zero(3, True, True, 0, 300), 4) == (Memory(600, 0, 0, 500, 1000), 12000 + 2000 + 2000)
    assert shard(whole, Zero(2, bucket=100), 1)[0].activations == 500 + 2 * 100 * 2
    assert shard(whole, Zero(2, bucket=2e8), 1)[0].activations == 500 + 2 * 2000  # no bucket is larger than all


def test_needed_adds_fragments_and_context():
    assert Memory(1 << 30, 1 << 30, 0, 0, 0).needed == pytest.approx(2 * 1.05 + 0.6)
