import numpy as np

from Firefly.component.collator import flatten_batch, pad_batch


def row(ids, labels):
    return {"input_ids": np.array(ids, np.int32), "labels": np.array(labels, np.int32)}


A, B = row([5, 6, 7], [-100, 6, 7]), row([8, 9], [8, 9])


def test_flat_by_hand():
    batch = flatten_batch([A, B])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]  # 8 would be predicted by the record before
    assert batch["target_index"].tolist() == [0, 1, 3]  # where 6, 7 and 9 are predicted
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]
    assert (batch["max_length_q"], batch["max_length_k"]) == (3, 3)
    assert batch["cu_seq_lens_q"].dtype.itemsize == 4


def test_packed_rows_are_laid_flat_too():
    flat, packed = flatten_batch([A, B, A]), flatten_batch([[A, B], [A]])
    assert all(np.array_equal(flat[key], packed[key]) for key in flat)


def test_padded_by_hand():
    batch = pad_batch([A, B], pad_token_id=1, multiple=4)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 1], [8, 9, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [-100, 9, -100, -100]]
    assert batch["target_index"].tolist() == [0, 1, 4]


def test_rows_are_not_changed():
    flatten_batch([B])
    assert B["labels"].tolist() == [8, 9]
