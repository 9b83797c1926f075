"""Slow references for gradients: the library's own forward, plain hooks, autograd, one run a cell.

Nothing here imports the package. Each receiver of the stream gets a copy of it, as in the published
implementations: heads by setting q, k and v, MLPs by setting their pre-activations.
"""

import torch
from reference import kept

NAMES = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "pre": "mlp.hook_pre",
    "post": "mlp.hook_post",
}


def difference(logits, answers, foils, position=-1):
    """Logit difference at a position, ``[prompt]``."""
    rows = torch.arange(len(logits))
    return logits[rows, position, answers] - logits[rows, position, foils]


def hooked(model, tokens, hooks):
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


def activations(model, tokens, sites, metric, stream=None):
    """Activations, their gradients, and the metric, of one run; from `stream` on if it is given."""
    found = {}

    def note(key):
        def hook(x, hook=None):
            if key == ("resid_pre", 0) and stream is not None:
                x = stream
            x = x.clone() if x.requires_grad else x.clone().requires_grad_()
            found[key] = x
            return x

        return hook

    places = [("resid_pre", 0), *((s, i) for s in sites for i in range(model.cfg.n_layers))]
    hooks = [(f"blocks.{i}.{NAMES[s]}", note((s, i))) for s, i in dict.fromkeys(places)]
    values = metric(hooked(model, tokens, hooks))
    grads = torch.autograd.grad(values.sum(), list(found.values()), allow_unused=True)
    gradients = {
        key: torch.zeros_like(x) if grad is None else grad
        for (key, x), grad in zip(found.items(), grads, strict=True)
    }
    return {key: x.detach() for key, x in found.items()}, gradients, values.detach()


def attribution(model, clean, corrupted, sites, metric, places=None):
    """(clean - corrupted) * gradient, entry by entry.

    Places between corrupted (0) and clean (1) at which to take gradients, with weights.
    """
    here, _, m_clean = activations(model, clean, sites, metric)
    there, _, m_corrupted = activations(model, corrupted, sites, metric)
    enter = ("resid_pre", 0)
    total = {}
    for place, weight in places:
        stream = (there[enter] + place * (here[enter] - there[enter])).detach()
        _, grads, _ = activations(model, corrupted, sites, metric, stream)
        for key, grad in grads.items():
            total[key] = total.get(key, 0) + weight * grad
    return {key: (here[key] - there[key]) * g for key, g in total.items()}, m_clean, m_corrupted


def normalized(model, x, norm):
    """A norm by its definition, with the model's scale and shift if it has them still."""
    centred = kept(model, x)
    y = centred / (centred.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    w, b = getattr(norm, "w", None), getattr(norm, "b", None)
    y = y if w is None else y * w
    return y if b is None else y + b


def graph_run(model, tokens, inputs):  # noqa: C901 (one small hook per place)
    """A forward pass in which each receiver reads ``inputs(receiver, stream, senders)``.

    ``receiver`` is ``("q", layer)`` and so on (``[batch, pos, head, d_model]``), ``("mlp", layer)``
    or ``"logits"``; `senders` holds what has been written, by label, before it in order.
    """
    senders, now = {}, {}
    n_heads = model.cfg.n_heads

    def enter(layer):
        def hook(x, hook=None):
            if layer == 0:
                senders["embed"] = x
                now["stream"] = x
            return now["stream"]

        return hook

    def project(name, layer):
        def hook(x, hook=None):
            attn = model.blocks[layer].attn
            weight, bias = getattr(attn, f"W_{name.upper()}"), getattr(attn, f"b_{name.upper()}")
            heads = x.shape[2]  # of shared keys and values, as many as there are
            weight, bias = (
                0 if w is None else w[:: max(1, len(w) // heads)] for w in (weight, bias)
            )
            stream = now["stream"].unsqueeze(2).expand(-1, -1, heads, -1)
            read = normalized(
                model, inputs((name, layer), stream, senders), model.blocks[layer].ln1
            )
            return torch.einsum("bphd,hde->bphe", read, weight) + bias

        return hook

    def heads(layer):
        def hook(x, hook=None):
            now["heads"] = torch.einsum("bphe,hed->bphd", x, model.blocks[layer].attn.W_O)
            now["seen"] = dict(senders)
            for head in range(n_heads):
                senders[f"L{layer}H{head}"] = now["heads"][:, :, head]

        return hook

    def attended(layer):
        def hook(x, hook=None):
            now["attn_out"] = x

        return hook

    def pre(layer):
        def hook(x, hook=None):
            block = model.blocks[layer]
            parallel = model.cfg.parallel_attn_mlp
            stream = now["stream"] if parallel else now["stream"] + now["attn_out"]
            seen = now["seen"] if parallel else dict(senders)
            norm = block.ln2 if hasattr(block, "ln2") else block.ln1
            now["read"] = normalized(model, inputs(("mlp", layer), stream, seen), norm)
            if model.cfg.gated_mlp:
                return now["read"] @ block.mlp.W_gate
            return now["read"] @ block.mlp.W_in + block.mlp.b_in

        return hook

    def linear(layer):
        return lambda x, hook=None: now["read"] @ model.blocks[layer].mlp.W_in

    def wrote(layer):
        def hook(x, hook=None):
            senders[f"{layer}.mlp"] = x
            now["stream"] = now["stream"] + now["attn_out"] + x

        return hook

    def leave(x, hook=None):
        return inputs("logits", now["stream"], senders)

    hooks = []
    for i in range(model.cfg.n_layers):
        hooks.append((f"blocks.{i}.hook_resid_pre", enter(i)))
        hooks += [(f"blocks.{i}.attn.hook_{n}", project(n, i)) for n in ("q", "k", "v")]
        hooks.append((f"blocks.{i}.attn.hook_z", heads(i)))
        hooks.append((f"blocks.{i}.hook_attn_out", attended(i)))
        hooks.append((f"blocks.{i}.mlp.hook_pre", pre(i)))
        if model.cfg.gated_mlp:
            hooks.append((f"blocks.{i}.mlp.hook_pre_linear", linear(i)))
        hooks.append((f"blocks.{i}.hook_mlp_out", wrote(i)))
    hooks.append((f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", leave))
    return hooked(model, tokens, hooks), senders


def label(receiver, head=None):
    if receiver == "logits":
        return "logits"
    name, layer = receiver
    return f"{layer}.mlp" if name == "mlp" else f"L{layer}H{head}.{name}"


def edge_scores(model, clean, corrupted, metric, where):
    """EAP edge by edge: ``{(sender, receiver): [prompt]}``; gradients at the run on `where`."""
    plain = lambda receiver, stream, senders: stream
    with torch.no_grad():
        here, there = (graph_run(model, x, plain)[1] for x in (clean, corrupted))
    copies, heard = {}, {}

    def copy(receiver, stream, senders):
        copies[receiver] = torch.zeros_like(stream).requires_grad_()
        heard[receiver] = list(senders)
        return stream + copies[receiver]

    values = metric(graph_run(model, where, copy)[0])
    grads = torch.autograd.grad(values.sum(), list(copies.values()))
    scores = {}
    for receiver, grad in zip(copies, grads, strict=True):
        per_head = receiver != "logits" and receiver[0] != "mlp"
        for head in range(grad.shape[2] if per_head else 1):
            g = grad[:, :, head] if per_head else grad
            for sender in heard[receiver]:
                change = here[sender] - there[sender]
                scores[sender, label(receiver, head)] = (change * g).sum((1, 2))
    return scores


def circuit_metric(model, clean, corrupted, metric, kept):
    """The metric where only edges in `kept` carry what the circuit computes on clean prompts."""
    plain = lambda receiver, stream, senders: stream
    with torch.no_grad():
        there = graph_run(model, corrupted, plain)[1]

        def cut(receiver, stream, senders):
            per_head = receiver != "logits" and receiver[0] != "mlp"
            stream = stream.clone()
            for head in range(stream.shape[2] if per_head else 1):
                part = (slice(None), slice(None), head) if per_head else slice(None)
                for sender, wrote in senders.items():
                    if (sender, label(receiver, head)) not in kept:
                        stream[part] += there[sender] - wrote
            return stream

        return metric(graph_run(model, clean, cut)[0])
