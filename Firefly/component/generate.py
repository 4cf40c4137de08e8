"""Generation with transformers: a batch, or one answer piece by piece, with LoRA adapters on the base or none.

Sampling draws each row's noise from its own generator, seeded by ``seed`` and the row number, so a row's answer does
not depend on which rows share its batch or on where a run was resumed.
"""

import contextlib
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar

from .checkpoint import keep_nf4_readable, load_causal_lm, nf4_config
from .inference import Completion, Engine, Request
from .rows import Rows, by_adapter, plan_rows
from .session import Sampling, Session, TextStream, choose_device, open_session
from .vocabulary import fit_vocabulary

PREFILL = 512  # tokens of a prompt that are read at a time
# Of the prompts of a batch, padding included: one long row must not be padded for by 31 short ones.
BATCH_TOKENS = 32768


def load_engine(args: Namespace) -> Engine:
    """Load model, tokenizer and adapters as the flags say; batches, streams, and several adapters by name."""
    session = open_session(args)
    rows = plan_rows(session, args)
    model = load_model(session, *choose_device(args), args.load_in_4bit)

    def generate(requests: list[Request]) -> Iterator[tuple[Request, Completion]]:
        yield from generate_window(model, session, list(map(rows.fit, requests)), args.batch_size, rows)

    def stream(request: Request, emit: Callable[[str], None]) -> Completion:
        with using_adapter(model, session, rows.adapter(request)):
            return stream_answer(model, session, rows.fit(request), emit)

    return Engine(generate, stream, 16 * args.batch_size, rows.check, rows.fingerprint)


def load_model(session: Session, device: str, dtype: torch.dtype, load_in_4bit: bool = False) -> Any:
    """Load the base in ``dtype`` on ``device`` and put the adapters, if any, on top of it; ready for evaluation.

    The first adapter is the active one until ``using_adapter`` picks another.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # peft imports it, and it talks of kernels not wanted here
    kwargs: dict[str, Any] = {"dtype": dtype}
    if load_in_4bit:
        kwargs["quantization_config"] = nf4_config(dtype)
        kwargs["device_map"] = {"": device}
    model = load_causal_lm(session.model, **kwargs)
    if not load_in_4bit:
        model = model.to(device)
    if session.adapters:
        from peft import PeftModel

        for adapter in session.adapters.values():
            fit_vocabulary(model, adapter)
        names = dict(zip(peft_names(session).values(), session.adapters.values(), strict=True))
        model = PeftModel.from_pretrained(model, names.pop("default"), torch_device=device)
        for name, adapter in names.items():
            model.load_adapter(adapter, name, torch_device=device)
        if any(getattr(config, "use_dora", False) for config in model.peft_config.values()):  # it reads the base
            keep_nf4_readable(model)
    model.generation_config = GenerationConfig()  # its values are in session.sampling; nothing may come in beside it
    return model.eval()


def peft_names(session: Session) -> dict[str, str]:
    """What PEFT calls each adapter: its names may hold no dot, ours may."""
    return {name: f"adapter{number}" if number else "default" for number, name in enumerate(session.adapters)}


@contextlib.contextmanager
def using_adapter(model: Any, session: Session, name: str | None) -> Iterator[None]:
    """Answer with the adapter ``name``, or with the base alone when it is None."""
    if not session.adapters:
        yield
    elif name is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(peft_names(session)[name])
        yield


class RowNoise(LogitsProcessor):
    """Sampling as an argmax (the Gumbel-max trick): argmax(logits + Gumbel noise) is a draw from softmax(logits)."""

    def __init__(self, seeds: list[int], device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (rows, vocab_size)."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.clamp_min_(1e-30).log_()


def draw_steps(sampling: Sampling, seeds: list[int], device: torch.device) -> list[LogitsProcessor]:
    """What turns logits into scores whose argmax is the next token; none when plainly greedy. seeds: one for each row."""
    penalty = sampling.repetition_penalty
    steps: list[LogitsProcessor] = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []
    if not sampling.temperature > 0:
        return steps
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    return [*steps, RowNoise(seeds, device)]


def _seeds(session: Session, requests: list[Request]) -> list[int]:
    return [session.sampling.seed + request.index for request in requests]


def _pad_id(session: Session) -> int:
    return session.tokenizer.pad_token_id or session.stop_ids[0]


@torch.inference_mode()
def generate_batch(model: Any, session: Session, requests: list[Request]) -> list[Completion]:
    """Answer ``requests`` together, padded on the left; one Completion each, in the same order.

    A row leaves the batch with its last token: in transformers' own ``generate`` it would be counted on to the end of the
    longest answer, half of all the work where answers have many lengths.
    """
    prompts = [session.encode(request) for request in requests]
    input_ids, mask = _padded_left(prompts, _pad_id(session), model.device)
    rooms, new = [session.room(len(prompt)) for prompt in prompts], [[] for _ in prompts]
    steps = draw_steps(session.sampling, _seeds(session, requests), model.device)
    cache, rows, fresh = DynamicCache(config=model.config), list(range(len(prompts))), input_ids
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    while rows:
        output = model(
            input_ids=fresh,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        scores = output.logits[:, -1].float()
        for step in steps:
            scores = step(input_ids, scores)
        tokens = scores.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            new[row].append(token)
        kept = [k for k, row in enumerate(rows) if new[row][-1] not in session.stop_ids and len(new[row]) < rooms[row]]
        if len(kept) < len(rows):
            index = torch.tensor(kept, dtype=torch.int64, device=model.device)
            input_ids, mask, tokens, rows = input_ids[index], mask[index], tokens[index], [rows[k] for k in kept]
            cache.batch_select_indices(index)
            for step in steps:
                if isinstance(step, RowNoise):
                    step.generators = [step.generators[k] for k in kept]
        fresh = tokens[:, None]
        input_ids, mask = torch.cat([input_ids, fresh], 1), torch.cat([mask, torch.ones_like(fresh)], 1)
        positions = mask.sum(1, keepdim=True) - 1
    return [session.complete(prompt, ids) for prompt, ids in zip(prompts, new, strict=True)]


def _padded_left(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, width) int64 each: tokens, and 1 where there is one."""
    width = max(map(len, prompts))
    input_ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return input_ids.to(device), mask.to(device)


def generate_window(
    model: Any, session: Session, requests: list[Request], batch_size: int, rows: Rows | None = None
) -> Iterator[tuple[Request, Completion]]:
    """Answer a window of requests in batches of like length, longest first, so that little of a batch is padding.

    With ``rows``, one adapter after the other answers its own; without, the active one answers all.
    """
    if rows:
        for name, own in by_adapter(requests, rows):
            with using_adapter(model, session, name):
                yield from generate_window(model, session, own, batch_size)
        return
    lengths = {request.index: len(session.encode(request)) for request in requests}
    ordered = sorted(requests, key=lambda request: (-lengths[request.index], request.index))
    while ordered:
        rows = min(batch_size, max(1, BATCH_TOKENS // lengths[ordered[0].index]))
        batch, ordered = ordered[:rows], ordered[rows:]
        yield from zip(batch, generate_batch(model, session, batch), strict=True)


class _Pieces(BaseStreamer):
    """Receives ids from ``generate`` as they come, the prompt first, and hands on the text."""

    def __init__(self, session: Session, emit: Callable[[str], None]):
        self.text, self.emit, self.ids, self.prompt_seen = TextStream(session), emit, [], False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.ids.append(token)
            if piece := self.text.add(token):
                self.emit(piece)

    def end(self) -> None:
        pass


@torch.inference_mode()
def stream_answer(model: Any, session: Session, request: Request, emit: Callable[[str], None]) -> Completion:
    """Answer one request, calling ``emit`` with each piece of text."""
    prompt = session.encode(request)
    pieces = _Pieces(session, emit)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=session.room(len(prompt)),
        eos_token_id=list(session.stop_ids),
        pad_token_id=_pad_id(session),
    )
    steps = LogitsProcessorList(draw_steps(session.sampling, _seeds(session, [request]), model.device))
    settings: dict[str, Any] = {"generation_config": config, "logits_processor": steps}
    input_ids = torch.tensor([prompt], device=model.device)
    if len(prompt) > PREFILL:
        settings["past_key_values"] = read_ahead(model, input_ids)
    model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), streamer=pieces, **settings)
    return session.complete(prompt, pieces.ids)


def read_ahead(model: Any, input_ids: torch.Tensor) -> DynamicCache:
    """Read a long prompt in pieces, but for the last, so that whoever waits can be stopped in between. (1, tokens)"""
    cache = DynamicCache()
    for piece in input_ids.split(PREFILL, dim=1)[:-1]:
        model(input_ids=piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def greedy(session: Session, max_new_tokens: int) -> Session:
    """The same session decoding greedily, for evaluation."""
    sampling = replace(session.sampling, temperature=0.0, repetition_penalty=1.0, max_new_tokens=max_new_tokens)
    return replace(session, sampling=sampling)
