"""Answers in the form of OpenAI's interface: https://platform.openai.com/docs/api-reference."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

from trt_compress.runtime.generate.stream import CANCELLED, CONTEXT, LENGTH, STOP, Chosen, Generated, Piece
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.tools.serve.asked import Asked

_REASONS = {STOP: "stop", LENGTH: "length", CONTEXT: "length", CANCELLED: "stop"}


class Answer:
    """What one request is answered with."""

    def __init__(self, asked: Asked, model: str, tokenizer: Tokenizer) -> None:
        """Begin an answer."""
        self._asked = asked
        self._tokenizer = tokenizer
        self._begun: set[int] = set()
        kind = "chat.completion" if asked.is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": f"{kind}.chunk" if asked.is_chat and asked.streams else kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, results: Sequence[Generated]) -> dict[str, Any]:
        """The answer at once."""
        choices = []
        for number, result in enumerate(results):
            choice: dict[str, Any] = {"index": number, "finish_reason": _REASONS[result.reason]}
            if self._asked.is_chat:
                choice["message"] = {"role": "assistant", "content": result.text, "refusal": None}
            else:
                choice["text"] = result.text
            choices.append({**choice, "logprobs": self._logprobs(number, result.tokens)})
        return {**self._head, "choices": choices, "usage": usage_of(results)}

    def chunk(self, piece: Piece) -> dict[str, Any] | None:
        """A piece of it; None: there is nothing to say yet."""
        number = piece.sequence
        logprobs = self._logprobs(number, piece.tokens)
        if not piece.text and piece.reason is None and logprobs is None and number in self._begun:
            return None
        reason = None if piece.reason is None else _REASONS[piece.reason]
        choice: dict[str, Any] = {"index": number, "finish_reason": reason, "logprobs": logprobs}
        if self._asked.is_chat:
            choice["delta"] = {"content": piece.text}
            if number not in self._begun:
                choice["delta"]["role"] = "assistant"
        else:
            choice["text"] = piece.text
        self._begun.add(number)
        usage = {"usage": None} if self._asked.with_usage else {}
        return {**self._head, "choices": [choice], **usage}

    def usage(self, results: Sequence[Generated]) -> dict[str, Any]:
        """The last piece, with the numbers of tokens."""
        return {**self._head, "choices": [], "usage": usage_of(results)}

    def _logprobs(self, number: int, tokens: Sequence[Chosen]) -> dict[str, Any] | None:
        if self._asked.sampling[number].logprobs is None:
            return None
        if self._asked.is_chat:
            return {"content": [self._told(one.token, one.logprob, one.top) for one in tokens], "refusal": None}
        offsets, length = [], 0
        for one in tokens:
            offsets.append(length)
            length += len(self._text(one.token))
        return {
            "tokens": [self._text(one.token) for one in tokens],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [{self._text(token): value for token, value in one.top} for one in tokens],
            "text_offset": offsets,
        }

    def _told(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]] | None) -> dict[str, Any]:
        text = self._text(token)
        said: dict[str, Any] = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        return said if top is None else {**said, "top_logprobs": [self._told(one, value, None) for one, value in top]}

    def _text(self, token: int) -> str:
        """A token by itself; special ones by their names."""
        return self._tokenizer.decode([token]) or self._tokenizer.token(token)


def usage_of(results: Sequence[Generated]) -> dict[str, Any]:
    """The numbers of tokens, and how many of those of the prompts were read before."""
    read, written = sum(one.prompt_tokens for one in results), sum(len(one.tokens) for one in results)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(one.reused for one in results)},
    }


def models_of(model: str, created: int) -> dict[str, Any]:
    """The list of models, of which there is one."""
    return {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": created, "owned_by": "trt-compress"}],
    }


def error_of(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """An error as clients expect it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
