"""One answer under way: its prompt, how its next token is drawn, and the text that goes out piece by piece."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor

from .generate import draw_steps
from .session import Sampling, Session, TextStream


@dataclass(frozen=True)
class Piece:
    """Some text, maybe none. ``finish`` is None while more comes, then "stop", "length" or "error"."""

    text: str
    finish: str | None = None


@dataclass(eq=False)
class Stream:
    """``emit`` gets every Piece, on the worker's thread; ``answer`` is the whole text once ``finish`` is set.

    Set ``cancelled`` and no more tokens are made for it.
    """

    session: Session
    prompt: list[int]
    sampling: Sampling
    emit: Callable[[Piece], None]
    stop: tuple[str, ...] = ()
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    answer: str = ""
    cancelled: bool = False
    shown: int = 0

    def __post_init__(self) -> None:
        self.text, self.decoder = "", TextStream(self.session)
        self.room = min(self.sampling.max_new_tokens, self.session.context - len(self.prompt))
        self.draw: list[LogitsProcessor] | None = None

    def tokens(self) -> list[int]:
        """All tokens so far, prompt first: what must be read again after the row was put back."""
        return self.prompt + self.ids

    def push(self, token: int) -> None:
        """Take the next token: emit what it makes certain, and finish when it is the last."""
        self.ids.append(token)
        self.text += self.decoder.add(token)
        stopped = token in self.session.stop_ids
        if stopped or len(self.ids) >= self.room:
            self.finish = "stop" if stopped else "length"
            self.text += self._waiting_text()
        end = self._cut_at_stop()
        if self.finish:
            self.answer = self.text[:end]
            if end == len(self.text):  # bytes that make up no character may read otherwise from the start
                self.answer = self.session.complete(self.prompt, self.ids).text
        if end > self.shown or self.finish:
            piece, self.shown = self.text[self.shown : end], max(self.shown, end)
            self.emit(Piece(piece, self.finish))

    def _waiting_text(self) -> str:
        """What the decoder held back because its last character was not whole, and now never will be."""
        ids, start, shown = self.decoder.ids, self.decoder.start, self.decoder.shown
        before, text = (
            self.session.tokenizer.decode(part, skip_special_tokens=True) for part in (ids[start:shown], ids[start:])
        )
        return text[len(before) :]

    def fail(self) -> None:
        self.finish = "error"
        self.emit(Piece("", "error"))

    def _cut_at_stop(self) -> int:
        """Return up to where the text may go out: before a stop string, or before what may become one."""
        longest = max(map(len, self.stop), default=0)
        found = [self.text.find(word, max(0, self.shown - longest)) for word in self.stop]
        if starts := [start for start in found if start >= 0]:
            self.finish = "stop"
            return min(starts)
        if self.finish:
            return len(self.text)
        for held in range(min(longest - 1, len(self.text)), 0, -1):
            if any(word.startswith(self.text[-held:]) for word in self.stop):
                return len(self.text) - held
        return len(self.text)


def next_tokens(streams: list[Stream], logits: torch.Tensor) -> list[int]:
    """Draw one token for each stream by its own settings. logits: (streams, vocab_size)."""
    tokens = logits.argmax(-1)
    for row, stream in enumerate(streams):
        if stream.draw is None:  # kept from token to token: it holds the state of the noise
            stream.draw = draw_steps(stream.sampling, [stream.sampling.seed], logits.device)
        if stream.draw:
            penalised = stream.sampling.repetition_penalty != 1
            ids = torch.tensor([stream.tokens()], device=logits.device) if penalised else None
            scores = logits[row : row + 1].float()
            for step in stream.draw:
                scores = step(ids, scores)
            tokens[row] = scores.argmax(-1)[0]
    return tokens.tolist()
