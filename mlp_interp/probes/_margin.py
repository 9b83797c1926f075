"""What a model answers when its stream is changed at one position of each prompt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlp_interp.metrics import Linear, logit_difference
from mlp_interp.models import Forward, HookForward, Weights, forward_of
from mlp_interp.models.forward import KVCache
from mlp_interp.models.own_mode import own_mode
from mlp_interp.models.protocol import Model
from mlp_interp.probes.labelled import Labelled
from mlp_interp.prompts.single import token_id
from mlp_interp.prompts.texts import Texts
from mlp_interp.results import to_numpy
from mlp_interp.sites import Site

__all__ = ["Margin"]


@dataclass(frozen=True)
class Margin:
    """The logit of one class's answer less that of the other's, at the end of each prompt.

    Attributes:
        model: The model.
        forward: Its forward pass.
        data: The prompts, of two classes.
        metric: The margin, for one prompt.
        batch_size: Prompts that run at once.
    """

    model: Model
    forward: Forward | HookForward
    data: Labelled
    metric: Linear
    batch_size: int

    @classmethod
    def of(cls, model: Model, data: Labelled, answers: Any, batch_size: int) -> "Margin":
        """Check data and answers.

        Raises:
            ValueError: Not two classes read at one position of each prompt, or not one token of
                each for an answer.
        """
        if data.classes is None or len(data.classes) != 2 or data.position is None:
            raise ValueError(
                f"data has classes {data.classes}, read at "
                f"{'a mean' if data.position is None else 'one position'}; wanted two classes, "
                "read at one position of each prompt"
            )
        if not isinstance(answers, Mapping) or {*map(str, answers)} != {*data.classes}:
            raise ValueError(
                f"answers={answers!r}; wanted what the model says of each class, as "
                f"{dict.fromkeys(data.classes, ' Yes')}"
            )
        weights, ids = Weights.of(model), {}
        for name, word in answers.items():
            token = token_id(weights, word, name=f"answers[{name!r}]")
            ids[str(name)] = torch.tensor([token], device=weights.device)
        metric = logit_difference(ids[data.classes[1]], ids[data.classes[0]])
        return cls(model, forward_of(model), data, metric, batch_size)

    def after(
        self, layer: int, rows: np.ndarray, changes: list[Callable[[Tensor], Tensor]]
    ) -> np.ndarray:
        """Margins ``[change, prompt]`` when what leaves a layer at the position is changed so."""
        found = np.empty((len(changes), len(rows)))
        for part, stream, at in self._streams(layer, rows):
            first, held = int(at.min()), self._before(layer, stream[:, : int(at.min())])
            if held is not None:  # nothing before the change is changed by it
                stream, at = stream[:, first:], at - first
            here = torch.arange(len(stream), device=stream.device)
            for n, change in enumerate(changes):
                edited = stream.clone()
                edited[here, at] = change(stream[here, at].double()).to(stream.dtype)
                with torch.no_grad():
                    found[n, part] = to_numpy(self._read(layer, edited, held))
        return found

    def gradient(self, layer: int, rows: np.ndarray) -> np.ndarray:
        """Mean gradient ``[d_model]`` of the margin with respect to what leaves a layer."""
        total = np.zeros(Weights.of(self.model).d_model)
        with own_mode():
            for _, stream, at in self._streams(layer, rows):
                here = torch.arange(len(stream), device=stream.device)
                with torch.enable_grad():
                    leaf = stream.detach().requires_grad_()
                    (grad,) = torch.autograd.grad(self._read(layer, leaf).sum(), leaf)
                total += to_numpy(grad[here, at].double().sum(0))
            if isinstance(self.forward, HookForward):
                # The bridge keeps the pattern of its last forward, and with it the whole graph.
                token = torch.tensor([self.data.rows[0][:1]], device=self.forward.weights.device)
                with torch.no_grad():
                    self.model(token, return_type=None)
        return total / len(rows)

    def _streams(self, layer: int, rows: np.ndarray):
        device = self.forward.weights.device
        texts = Texts(tuple(self.data.rows[n] for n in rows), None)
        at = np.asarray(self.data.position)[rows]
        for part, tokens, _ in texts.batches(self.batch_size):
            with torch.no_grad():
                embedded = self.forward.embed(tokens.to(device))
                stream = self.forward.run(embedded, stop=layer + 1)
            yield part, stream, torch.from_numpy(at[part]).to(device)

    @torch.no_grad()
    def _before(self, layer: int, stream: Tensor) -> KVCache | None:
        """What later layers keep of the positions before the change; None where they cannot."""
        if not isinstance(self.forward, Forward) or not stream.shape[1]:
            return None
        held = KVCache()
        self.forward.run(stream, start=layer + 1, kv_cache=held)
        return held

    def _read(self, layer: int, stream: Tensor, before: KVCache | None = None) -> Tensor:
        """Margins ``[prompt]`` of a stream that leaves a layer, perhaps after other positions."""
        final = self._final(layer + 1, stream, before)[:, -1:]
        read = self.metric.reader(self.model, final[:1].detach())
        return read(final, torch.zeros(len(final), dtype=torch.long, device=final.device))

    def _final(self, start: int, stream: Tensor, before: KVCache | None) -> Tensor:
        forward = self.forward
        if start == forward.weights.n_layers:
            return stream
        if isinstance(forward, Forward):
            held = None if before is None else before.branch()
            return forward.run(stream, start=start, kv_cache=held)
        if not stream.requires_grad:
            return forward.run(stream, start=start)
        final: list[Tensor] = []

        def enter(_x: Tensor, hook: Any = None) -> Tensor:
            return stream.clone()

        def leave(x: Tensor, hook: Any = None) -> None:
            final.append(x)

        last = Site("resid_post", forward.weights.n_layers - 1).hook_name
        hooks = [(Site("resid_pre", start).hook_name, enter), (last, leave)]
        tokens = torch.ones(stream.shape[:2], dtype=torch.long, device=stream.device)
        self.model.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks)
        return final[0]
