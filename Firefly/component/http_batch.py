"""Many answers at once: one worker thread makes tokens for a batch whose rows come and go between any two tokens.

Rows are padded on the left in one key-value cache. In turn the worker reads at most PREFILL tokens of new prompts, then
makes one token for every row, so a long prompt delays the others by one chunk at a time. Rows enter in the order they
came, nobody overtakes, and all rows that run go at the same pace. When rows x width outgrow ``max_tokens``, the row that
entered last goes back to the head of the queue and is read again later; its text goes on where it was.

transformers' own continuous batching was tried: same greedy text, about half the speed on a CPU with a tiny model; its
cache is fixed in advance, and it knows no seed and no repetition penalty per request.
"""

import logging
import threading
from collections import deque
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from .generate import PREFILL
from .http_stream import Stream, next_tokens

log = logging.getLogger("firefly.http")


class QueueFull(Exception):
    """More requests wait than the queue may hold, or the worker has ended."""


class Batcher:
    """``rows`` run at once, ``queue`` more may wait, and the cache holds ``max_tokens`` tokens, padding included."""

    def __init__(self, model: Any, rows: int, queue: int, max_tokens: int):
        self.model, self.max_rows, self.max_waiting, self.max_tokens = model, rows, queue, max_tokens
        self.waiting: deque[Stream] = deque()
        self.changed = threading.Condition()
        self.closed = False
        self._forget()
        self.thread = threading.Thread(target=self._work, name="firefly-batch", daemon=True)
        self.thread.start()

    def submit(self, stream: Stream) -> None:
        """Queue a stream. Raises QueueFull."""
        with self.changed:
            if self.full() or self.closed:
                raise QueueFull
            self.waiting.append(stream)
            self.changed.notify()

    def full(self) -> bool:
        return len(self.waiting) >= self.max_waiting

    def counts(self) -> tuple[int, int]:
        """Return how many streams run and how many wait."""
        return len(self.rows) + (self.filling is not None), len(self.waiting)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join(timeout=30)

    def _forget(self) -> None:
        self.rows: list[Stream] = []
        self.cache: DynamicCache | None = None
        self.mask = torch.zeros((0, 0), dtype=torch.int64, device=self.model.device)  # (rows, width), 0 is padding
        self.filling: tuple[Stream, DynamicCache, int] | None = None  # a prompt read up to that token

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                self._serve()
        finally:  # whatever happened: nobody waits for ever
            self.closed = True
            self._fail_all()

    def _serve(self) -> None:
        while True:
            with self.changed:
                while not (self.closed or self.waiting or self.rows or self.filling):
                    self.changed.wait()
                if self.closed:
                    break
            try:
                self._drop_cancelled()
                self._prefill()
                self._decode()
            except Exception:  # e.g. out of memory: these answers are lost, the service lives
                log.exception("生成时出错，正在生成的回答都已放弃")
                self._fail_all()

    def _fail_all(self) -> None:
        lost = [*self.rows, *([self.filling[0]] if self.filling else [])]
        if self.closed:
            lost += self.waiting
            self.waiting.clear()
        for stream in lost:
            stream.fail()
        self._forget()

    def _drop_cancelled(self) -> None:
        with self.changed:
            if any(stream.cancelled for stream in self.waiting):
                self.waiting = deque(stream for stream in self.waiting if not stream.cancelled)
        if self.filling and self.filling[0].cancelled:
            self.filling = None
        self._keep([row for row, stream in enumerate(self.rows) if not stream.cancelled])

    def _prefill(self) -> None:
        """Read at most PREFILL tokens of prompts; whoever is read whole gets its first token and a row."""
        budget, ready = PREFILL, []
        while budget > 0 and (self.filling or self._admit(ready)):
            stream, cache, done = self.filling
            ids = stream.tokens()
            chunk = torch.tensor([ids[done : done + budget]], device=self.model.device)
            output = self.model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
            budget -= chunk.shape[1]
            self.filling = (stream, cache, done + chunk.shape[1])
            if self.filling[2] == len(ids):
                stream.push(next_tokens([stream], output.logits[:, -1])[0])
                self.filling = None
                if stream.finish is None:
                    ready.append((stream, cache))
        if ready:
            self._join(ready)

    def _admit(self, ready: list[tuple[Stream, DynamicCache]]) -> bool:
        """Take the next stream from the queue if rows x width still fit with it."""
        with self.changed:
            rows = len(self.rows) + len(ready)
            if not self.waiting or rows >= self.max_rows:
                return False
            width = max([self.mask.shape[1], *(len(stream.tokens()) for stream, _ in ready)])
            if rows and (rows + 1) * (max(width, len(self.waiting[0].tokens())) + 1) > self.max_tokens:
                return False
            self.filling = (self.waiting.popleft(), DynamicCache(), 0)
            return True

    def _join(self, ready: list[tuple[Stream, DynamicCache]]) -> None:
        """Pad the batch and the new rows on the left to one width and put them together."""
        caches = ([self.cache] if self.rows else []) + [cache for _, cache in ready]
        masks = ([self.mask] if self.rows else []) + [self.mask.new_ones((1, c.get_seq_length())) for _, c in ready]
        width = max(mask.shape[1] for mask in masks)
        self.mask = torch.cat([pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            for name in ("keys", "values"):  # each (rows, heads, width, head_dim)
                parts = [getattr(layer, name) for layer in layers]
                parts = [pad(part, (0, 0, width - part.shape[2], 0)) for part in parts]
                setattr(layers[0], name, torch.cat(parts))
        self.cache = caches[0]
        self.rows += [stream for stream, _ in ready]

    def _decode(self) -> None:
        """Make one token for every row."""
        while len(self.rows) > 1 and len(self.rows) * (self.mask.shape[1] + 1) > self.max_tokens:
            with self.changed:
                self.waiting.appendleft(self.rows[-1])
            self._keep(list(range(len(self.rows) - 1)))
        if not self.rows:
            return
        self.mask = pad(self.mask, (0, 1), value=1)
        output = self.model(
            input_ids=torch.tensor([[stream.ids[-1]] for stream in self.rows], device=self.model.device),
            attention_mask=self.mask,
            position_ids=self.mask.sum(1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        for stream, token in zip(self.rows, next_tokens(self.rows, output.logits[:, -1]), strict=True):
            stream.push(token)
        self._keep([row for row, stream in enumerate(self.rows) if stream.finish is None])

    def _keep(self, kept: list[int]) -> None:
        """Leave only these rows, and cut columns that are padding in all of them."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[row] for row in kept]
        if not kept:
            self.cache, self.mask = None, self.mask[:0, :0]
            return
        index = torch.tensor(kept, device=self.mask.device)
        self.mask = self.mask[index]
        first = int(self.mask.any(0).int().argmax())
        self.mask = self.mask[:, first:]
        for layer in self.cache.layers:
            layer.keys = layer.keys[index, :, first:].contiguous()
            layer.values = layer.values[index, :, first:].contiguous()
