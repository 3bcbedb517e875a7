"""``model.generate`` of transformers, driven by requests.

One call of ``model.generate`` has one set of sampling parameters and one set of stops, so requests that share them go
together as a left-padded batch, and the groups run one after another. Two things are not transformers' own, because it
has one length limit a call and knows no sequences of ids as stops: limits that differ from row to row, and
``stop_sequences``. Both are stopping criteria here. A row that has ended is cut where its own criterion ended it. Rows
of one limit without such stops take the library's call as it is, and as fast as it is.

torch has one generator a process. A seeded request that samples therefore runs in a call of its own, after
``torch.manual_seed``; its ``n`` completions are successive draws of that one stream. The same seed gives the same
tokens on the same machine, versions and settings, and nothing beyond that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from lmconform.adapter import Completion, NotOffered, Refused, Request
from lmconform.engines.common import check_tokens, top_logprobs

if TYPE_CHECKING:
    from lmconform.engines.transformers import TransformersModel


def generate(model: TransformersModel, requests: Sequence[Request]) -> list[Completion]:
    """Return ``n`` completions for each request, in the order of the requests.

    Raises:
        NotOffered: stop strings without a tokenizer, or with one that transformers' matcher cannot work with.
        Refused: parameters that transformers refuses, such as a temperature of 0; no new tokens; a stop id out of
            range.
    """
    if model.tokenizer is None and any(request.stop_strings for request in requests):
        raise NotOffered("stop_strings: the checkpoint has no tokenizer.")
    for request in requests:
        if request.max_new_tokens < 1 or request.n < 1:
            raise Refused(f"max_new_tokens is {request.max_new_tokens} and n is {request.n}; both must be 1 or more.")
        if request.stop_ids:  # also because ended rows are padded with the first of them
            check_tokens(request.stop_ids, model.vocab_size)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(_key(request, place), []).append(place)
    done: dict[int, list[Completion]] = {}
    for places in groups.values():
        rows = _Call(model, [requests[place] for place in places for _ in range(requests[place].n)]).run()
        for place in places:
            done[place], rows = rows[: requests[place].n], rows[requests[place].n :]
    return [completion for place in range(len(requests)) for completion in done[place]]


def padded(rows: Sequence[Sequence[int]], side: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, [B, T] each, with id 0 where the mask is 0."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[b, place] = torch.tensor(row)
        mask[b, place] = 1
    return ids.to(device), mask.to(device)


def _key(request: Request, place: int) -> tuple[Any, ...]:
    """Requests with equal keys can share a call."""
    sampling = None
    if request.temperature is not None:
        alone = place if request.seed is not None else None
        sampling = (request.temperature, request.top_k, request.top_p, request.min_p, alone)
    stops = (request.stop_ids, request.eos, request.stop_strings, request.stop_sequences, request.min_new_tokens)
    return (sampling, stops, request.stream, request.logprobs is not None)


class _Call:
    """One call of ``model.generate``: the rows of one group, a row for each completion."""

    def __init__(self, model: TransformersModel, rows: list[Request]) -> None:
        self.model, self.rows = model, rows
        self.common = rows[0]  # what all rows share: sampling, stops, stream
        self.stop_ids = self.common.stop_ids + (model.eos_ids if self.common.eos else ())
        self.longest = max(len(row.prompt) for row in rows)
        self.stops = [_Ends(criterion, self._first_stop()) for criterion in self._criteria()]
        limits = [row.max_new_tokens for row in rows]
        self.limit = _Ends(_RowLimit(torch.tensor([self.longest + limit for limit in limits])), 0)
        self.limits = [self.limit] if len(set(limits)) > 1 else []
        self.streamer = _Pieces() if self.common.stream else None

    def run(self) -> list[Completion]:
        """Run ``model.generate`` and cut each row where it ended."""
        device = self.model.settings.device
        ids, mask = padded([row.prompt for row in self.rows], "left", device)  # [B, T] each
        seed = self.common.seed if self.common.temperature is not None else None
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            try:
                out = self.model.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=self._config(),
                    stopping_criteria=transformers.StoppingCriteriaList([*self.stops, *self.limits]),
                    streamer=self.streamer,
                )
            except ValueError as reason:
                raise Refused(f"transformers refuses the request: {reason}") from reason
        # Asked for no more than tokens, the library returns these alone, and does not keep its cache for us.
        sequences, logits = (out, None) if isinstance(out, torch.Tensor) else (out.sequences, out.logits)
        new = sequences[:, self.longest :].tolist()  # [B, steps]
        return [self._completion(b, new[b], logits) for b in range(len(self.rows))]

    def _config(self) -> transformers.GenerationConfig:
        """Everything is said, off included; the model's own generation config is blank."""
        settings, common = self.model.settings, self.common
        config: dict[str, Any] = {
            "max_new_tokens": max(row.max_new_tokens for row in self.rows),
            "do_sample": False,
            "num_beams": 1,
            "num_return_sequences": 1,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "use_cache": True,
            "cache_implementation": "static" if settings.cache == "static" else None,
            "disable_compile": not settings.compiled,
            "prefill_chunk_size": settings.prefill_chunk_size,
            "return_dict_in_generate": common.logprobs is not None,
            "output_logits": common.logprobs is not None,
            "eos_token_id": list(self.stop_ids) or None,
            "pad_token_id": self.stop_ids[0] if self.stop_ids else None,
        }
        if common.temperature is not None:
            config |= {
                "do_sample": True,
                "temperature": float(common.temperature),
                "top_k": common.top_k if common.top_k is not None else 0,
                "top_p": float(common.top_p) if common.top_p is not None else 1.0,
                "min_p": common.min_p,
                "typical_p": 1.0,
                "epsilon_cutoff": 0.0,
                "eta_cutoff": 0.0,
            }
        if self.stop_ids:
            # Never more than the length of the call, of which transformers would warn.
            config["min_new_tokens"] = min(common.min_new_tokens, config["max_new_tokens"])
        return transformers.GenerationConfig(**config)

    def _criteria(self) -> list[transformers.StoppingCriteria]:
        criteria: list[transformers.StoppingCriteria] = []
        if self.common.stop_strings:
            try:
                strings = list(self.common.stop_strings)
                criteria.append(_New(transformers.StopStringCriteria(self.model.tokenizer, strings), self.longest))
            except ValueError as reason:
                # Its matcher reads each token's text behind the word "abcdef": "substring not found" otherwise.
                raise NotOffered(
                    f"stop_strings: transformers cannot match them with this tokenizer ({reason}). The tokenizer must"
                    " spell the strings and, for the library's own probing, the word abcdef."
                ) from reason
        if self.common.stop_sequences:
            criteria.append(_Sequences(self.common.stop_sequences, self.longest))
        return criteria

    def _first_stop(self) -> int:
        """Length, prompt included, from which strings and sequences may stop."""
        return self.longest + self.common.min_new_tokens + 1

    def _completion(self, b: int, new: list[int], logits: tuple[torch.Tensor, ...] | None) -> Completion:
        request = self.rows[b]
        stops = [stop.first[b] - self.longest for stop in self.stops if b in stop.first]
        by_id = _end_by_id(new, self.stop_ids)
        stops += [by_id] if by_id is not None else []
        length = min([*stops, self.limit.first.get(b, self.longest + len(new)) - self.longest])
        tokens = tuple(new[:length])
        logprobs = None
        if request.logprobs is not None and logits is not None:
            logprobs = tuple(_step(logits[i][b], request.logprobs, token) for i, token in enumerate(tokens))
        pieces = None
        if self.streamer is not None:
            pieces = tuple((step[b],) for step in self.streamer.steps[:length])
        return Completion(
            tokens=tokens,
            finish_reason="stop" if length in stops else "length",
            text=None if self.model.tokenizer is None else self._text(tokens),
            logprobs=logprobs,
            pieces=pieces,
            cached_tokens=0,
        )

    def _text(self, tokens: tuple[int, ...]) -> str:
        return self.model.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _end_by_id(new: list[int], stop_ids: tuple[int, ...]) -> int | None:
    """Return how many tokens the row has if transformers ended it at a stop id, or None.

    After its end a row of a batch is padded with the first stop id. A stop id with anything else behind it did not
    stop, and the row is then shown whole: the adapter reports what the engine did.
    """
    pad = stop_ids[:1]
    for place, token in enumerate(new):
        if token in stop_ids and all((after,) == pad for after in new[place + 1 :]):
            return place + 1
    return None


def _step(logits: torch.Tensor, n: int, token: int) -> dict[int, float]:
    """Return the ``n`` greatest log-probabilities of raw logits [V], and that of the token that was taken."""
    row = torch.log_softmax(logits.double(), dim=-1).cpu().numpy()
    return {**top_logprobs(row, n), token: float(row[token])}


class _Ends(transformers.StoppingCriteria):
    """A criterion that is asked from a length on, and that remembers the length at which each row ended."""

    def __init__(self, criterion: transformers.StoppingCriteria, least: int) -> None:
        self.criterion, self.least = criterion, least
        self.first: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        ended = self.criterion(input_ids, scores, **kwargs)
        if input_ids.shape[1] < self.least:
            return torch.zeros_like(ended)
        for b in ended.nonzero().flatten().tolist():
            self.first.setdefault(b, input_ids.shape[1])
        return ended


class _New(transformers.StoppingCriteria):
    """A criterion that is shown the new tokens alone: transformers' matcher lets a string begin in the prompt."""

    def __init__(self, criterion: transformers.StoppingCriteria, start: int) -> None:
        self.criterion, self.start = criterion, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.criterion(input_ids[:, self.start :], scores, **kwargs)


class _RowLimit(transformers.StoppingCriteria):
    """Each row has a greatest length, prompt and padding included."""

    def __init__(self, limits: torch.Tensor) -> None:
        self.limits = limits  # [B]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return (self.limits <= input_ids.shape[1]).to(input_ids.device)


class _Sequences(transformers.StoppingCriteria):
    """A row ends when its new tokens end with one of some sequences of ids."""

    def __init__(self, sequences: Sequence[tuple[int, ...]], start: int) -> None:
        self.sequences, self.start = [sequence for sequence in sequences if sequence], start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = [tuple(row) for row in input_ids[:, self.start :].tolist()]
        ended = [any(row[-len(sequence) :] == sequence for sequence in self.sequences) for row in new]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


class _Pieces(BaseStreamer):
    """Keeps what ``generate`` hands to a streamer: the prompt first, then the tokens [B] of each step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.steps.append(value.tolist())
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""
