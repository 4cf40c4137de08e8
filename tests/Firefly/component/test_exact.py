import random

import numpy as np
import torch
from transformers import EarlyStoppingCallback

from Firefly.component.exact import LengthGroups, restore_callbacks, same_random_states


def test_length_groups_follow_from_seed_and_epoch_alone():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 100, 64)]
    sampler = LengthGroups(4, lengths, seed=7)
    orders = []
    for epoch in (0, 1, 0):
        torch.manual_seed(len(orders))  # the global state must not matter
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(64))
    spread = [np.ptp([lengths[i] for i in orders[0][start : start + 4]]) for start in range(0, 64, 4)]
    assert np.mean(spread) < 25  # of records in random order: about 60


def test_random_states_are_left_as_they_were():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with same_random_states():
        used = (random.random(), np.random.rand(), torch.rand(3))
    again = (random.random(), np.random.rand(), torch.rand(3))
    assert used[:2] == again[:2]
    assert torch.equal(used[2], again[2])


def test_callbacks_get_their_counters_back_and_keep_their_settings():
    before = EarlyStoppingCallback(early_stopping_patience=3)
    before.early_stopping_patience_counter = 2
    after = EarlyStoppingCallback(early_stopping_patience=9)
    restore_callbacks([after], {"EarlyStoppingCallback": before.state(), "Gone": {"attributes": {"x": 1}}})
    assert (after.early_stopping_patience_counter, after.early_stopping_patience) == (2, 9)
