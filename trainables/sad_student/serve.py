"""A small OpenAI-compatible server of one causal LM that gives log-probabilities.

    python -m trainables.sad_student.serve --teacher smollm2-taught --port 30000

It answers ``/v1/models`` and ``/v1/completions`` (prompt as text or token ids, ``echo``, ``logprobs``, greedy), one
request at a time. Log-probabilities are named ``token_id:<id>``.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import torch
from torch.nn import functional as F

from trainables.common.precision import has_fast_bf16
from trainables.sad_student.data import TAUGHT, adapter_of, base_of
from trainables.sad_student.models import load_model, load_tokenizer


class Server(ThreadingHTTPServer):
    """Serves one model.

    Args:
        address: Host and port; port 0 takes a free one.
        name: What the model is called.
        model: A causal LM in evaluation mode.
        tokenizer: Its own.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], name: str, model: Any, tokenizer: Any) -> None:
        super().__init__(address, _Handler)
        self.name, self.model, self.tokenizer, self.lock = name, model, tokenizer, Lock()

    @torch.inference_mode()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a completion request."""
        prompt = body["prompt"]
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids if isinstance(prompt, str) else prompt
        given, most, best = torch.tensor([ids]), int(body.get("max_tokens", 16)), int(body.get("logprobs") or 0)
        with self.lock:
            whole = given
            if most:
                whole = self.model.generate(
                    given, attention_mask=torch.ones_like(given), max_new_tokens=most, do_sample=False,
                    pad_token_id=self.tokenizer.eos_token_id,
                )  # fmt: skip
            logits = self.model(whole).logits[0] if best else None
        start = 0 if body.get("echo") else len(ids)
        shown = whole[0, start:].tolist()
        choice: dict[str, Any] = {"index": 0, "text": self.tokenizer.decode(shown), "finish_reason": "length"}
        choice["logprobs"] = None if logits is None else log_probabilities(logits, whole[0], start, best)
        return {"object": "text_completion", "model": self.name, "choices": [choice]}


def log_probabilities(logits: torch.Tensor, ids: torch.Tensor, start: int, best: int) -> dict[str, Any]:
    """Return the log-probabilities of the tokens from ``start`` on, in OpenAI's format.

    Args:
        logits: [T, V], of the token that follows each.
        ids: [T].
        start: First token that is wanted; nothing is known of the very first one.
        best: Most probable tokens to list for each.
    """
    log_p = F.log_softmax(logits[:-1].float(), dim=-1)
    values, named = log_p.topk(min(best, log_p.shape[-1]), dim=-1)
    own = log_p.gather(-1, ids[1:, None])[:, 0].tolist()
    top = [
        {f"token_id:{i}": value for i, value in zip(*pair, strict=True)}
        for pair in zip(named.tolist(), values.tolist(), strict=True)
    ]
    return {
        "tokens": [f"token_id:{i}" for i in ids[start:].tolist()],
        "token_logprobs": [None, *own][start:],
        "top_logprobs": [None, *top][start:],
    }


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        else:
            self._answer(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions" or "prompt" not in body:
            self._answer(404, {"error": f"{self.path} is not served, or the request has no prompt"})
        else:
            self._answer(200, self.server.complete(body))

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=TAUGHT)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = load_model(base_of(args.teacher), args.device, adapter_of(args.teacher)).eval()
    model = model.to(torch.bfloat16) if has_fast_bf16(args.device) else model
    with Server((args.host, args.port), args.teacher, model, load_tokenizer(base_of(args.teacher))) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
