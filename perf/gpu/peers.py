"""The same step in transformers on the card: bf16, with its static cache, eager, compiled, and in a CUDA graph.

    python perf/gpu/peers.py [--size 0.6B] [--fake]

One session, one token, at 512 and at 2,048 tokens of context, without any head, which favours the peer. The mask is
made beforehand, which favours it too. In the CUDA graph the token, its position and the mask are what is replaced
between steps, so the graph could serve a stream. A way that fails is said and does not end the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from figures import SIZES, parser, read, say, times
from prepared import checkpoint
from safetensors.torch import load_file
from torch_device import device, graphed, wait
from transformers import Qwen3Config, Qwen3Model, StaticCache

CONTEXTS, CELLS = (512, 2048), 2304
TIMED, TIMED_EAGER, WARM_COMPILED = 200, 50, 20


def load(folder: Path, fake: bool) -> Qwen3Model:
    """The checkpoint's layers, in bf16 on the device."""
    values = json.loads((folder / "config.json").read_text())
    config = Qwen3Config(**{name: value for name, value in values.items() if name != "architectures"})
    config._attn_implementation = "sdpa"
    state = {
        name.removeprefix("model."): tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
        if name.startswith("model.")
    }
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device(fake)):
        model = Qwen3Model(config)
    torch.set_default_dtype(torch.float32)
    model.load_state_dict(state)
    return model.eval()


class Step:
    """One token after `context` held ones, again and again at the same place."""

    def __init__(self, model: Qwen3Model, context: int, fake: bool) -> None:
        on = device(fake)
        self._fake, self._context, self.forward = fake, context, model.forward
        self._cache = StaticCache(config=model.config, max_cache_len=CELLS)
        held = torch.randint(0, model.config.vocab_size, (1, context), device=on)
        cells = torch.arange(CELLS, device=on)
        places = torch.arange(context, device=on)
        self._call(held, places, (cells[None] <= places[:, None])[None, None])
        self._ids, self._place = torch.zeros(1, 1, dtype=torch.long, device=on), torch.full((1,), context, device=on)
        self._mask = (cells <= context)[None, None, None]

    def _call(self, ids: torch.Tensor, places: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places[None],
            cache_position=places,
            past_key_values=self._cache,
            use_cache=True,
        )
        return found.last_hidden_state

    def _back(self) -> None:
        """Newer versions of transformers count the tokens in the cache itself."""
        for layer in self._cache.layers:
            count: Any = getattr(layer, "cumulative_length", None)
            if isinstance(count, torch.Tensor):
                count.fill_(self._context)

    def queue(self) -> torch.Tensor:
        self._back()
        return self._call(self._ids, self._place, self._mask)

    def whole(self) -> None:
        """Queues a step and waits for its result on the host."""
        self.queue().cpu()

    def replayed(self) -> Callable[[], None]:
        """A function that replays the step as a CUDA graph and brings its result to the host."""
        results: list[torch.Tensor] = []

        def record() -> None:
            results[:] = [self.queue()]

        replay = graphed(record, self._fake)

        def step() -> None:
            replay()
            results[0].cpu()

        return step


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", choices=SIZES, default="0.6B")
    arguments = read(made)
    model = load(checkpoint(arguments.folder, arguments.size, "stream", fake=arguments.fake), arguments.fake)
    named: dict[str, Any] = {"size": arguments.size, "peer": f"transformers {transformers.__version__}", "type": "bf16"}
    with torch.inference_mode():
        for context in CONTEXTS:
            step = Step(model, context, arguments.fake)

            def compiled(step: Step = step) -> Callable[[], None]:
                if not arguments.fake:  # on the CPU it would build C++ for minutes
                    step.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=False)
                return step.whole

            ways: dict[str, Callable[[], Callable[[], None]]] = {
                "eager": lambda step=step: step.whole,  # type: ignore[misc]
                "CUDA graph": step.replayed,
                "compiled": compiled,
            }
            for how, way in ways.items():
                try:
                    count, warm = (TIMED_EAGER, 10) if how == "eager" else (TIMED, WARM_COMPILED)
                    found = times(way(), count=count, warm=warm, fake=arguments.fake)
                    say("peer step", **named, how=how, context=context, k=1, sessions=1, **found)
                except Exception as error:
                    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    say("peer step failed", **named, how=how, context=context, why=reason)
                    wait(arguments.fake)


if __name__ == "__main__":
    main()
