"""Path patching as published: three passes with the library's own hooks, one sender at a time.

Nothing here imports the package.
"""

import numpy as np
import reference
import torch

SETS = {
    "query": ["L2H1.q"],
    "attention": ["1.attn"],
    "mlp": ["2.mlp"],
    "logits": ["logits"],
    "mixed": ["L1H2.k", "L2H0", "L1N5", "2.mlp", "2.q"],
    "with logits": ["L1H0.v", "L2N3", "logits"],
}
EARLY = ["embed", "0.attn", "L0H1", "0.mlp", "L0N7", "L0H2.q", "L0H3.k", "L0H0.v"]


class Slow:
    """The published recipe with the library's hooks, one sender and one pass at a time."""

    def __init__(self, model, contrast, direction="denoising"):
        self.model, self.contrast = model, contrast
        order = (contrast.corrupted_tokens, contrast.clean_tokens)
        if direction == "noising":
            order = order[::-1]
        self.tokens = order[0]
        self.base, self.source = (reference.full_cache(model, tokens) for tokens in order)
        self.n_layers = model.cfg.n_layers
        self.first_passes = {}
        # What neurons read; gated ones read twice.
        self.of_mlp = ["hook_pre", "hook_pre_linear"] if model.cfg.gated_mlp else ["hook_pre"]

    def metric(self, logits):
        rows = torch.arange(len(logits))
        answers, foils = self.contrast.answers, self.contrast.foils
        return (logits[rows, -1, answers] - logits[rows, -1, foils]).numpy()

    def run(self, hooks):
        return reference.hooked_logits(self.model, self.tokens, hooks)

    def head_with(self, layer, name, head):
        """A layer's z where one input of one head is the source's."""
        found = {}

        def keep(x, hook=None):
            found["z"] = x.clone()

        def swap(x, hook=None):
            x = x.clone()
            x[:, :, head] = self.source[f"blocks.{layer}.attn.hook_{name}"][:, :, head]
            return x

        at = f"blocks.{layer}.attn"
        self.run({f"{at}.hook_{name}": swap, f"{at}.hook_z": keep})
        return found["z"]

    def sending(self, senders, freeze, where):
        """Hooks of the first pass: everything held, and the senders the source's."""
        held = [f"blocks.{layer}.attn.hook_z" for layer in range(self.n_layers)]
        if freeze == "all":
            held += [f"blocks.{layer}.hook_mlp_out" for layer in range(self.n_layers)]
        held = {name: self.base[name].clone() for name in held}
        swapped = {}
        # What is sent whole comes last: it holds what its parts send.
        for label in sorted(senders, key=lambda x: x.endswith((".attn", ".mlp"))):
            name, unit, new = self.sent(label)
            if name in held:
                held[name][:, where, unit] = new[:, where, unit]
            elif "N" in label and freeze == "all":
                layer = int(label[1])
                change = (new - self.base[name])[:, where, unit, None]
                written = change * self.model.blocks[layer].mlp.W_out[unit]
                held[f"blocks.{layer}.hook_mlp_out"][:, where] += written
            else:
                swapped.setdefault(name, []).append((unit, new))
        hooks = {name: self.setting([(slice(None), x)], slice(None)) for name, x in held.items()}
        return hooks | {name: self.setting(chosen, where) for name, chosen in swapped.items()}

    def sent(self, label):
        """Hook name, unit and new value of what a sender writes."""
        if label == "embed":
            return "hook_embed", slice(None), self.source["hook_embed"]
        stem, _, name = label.partition(".")
        if label.startswith("L"):
            kind = "H" if "H" in stem else "N"
            layer, unit = (int(x) for x in stem[1:].split(kind))
            at = f"blocks.{layer}.attn.hook_z" if kind == "H" else f"blocks.{layer}.mlp.hook_post"
            return at, unit, self.head_with(layer, name, unit) if name else self.source[at]
        at = f"blocks.{stem}.attn.hook_z" if name == "attn" else f"blocks.{stem}.hook_mlp_out"
        return at, slice(None), self.source[at]

    @staticmethod
    def setting(chosen, where):
        def hook(x, hook=None):
            x = x.clone()
            for unit, values in chosen:
                x[:, where, unit] = values[:, where, unit]
            return x

        return hook

    def places(self, receivers):
        """Hook name and unit of what the receivers' inputs set."""
        found = []
        for label in receivers:
            if label == "logits":
                continue
            if label.startswith("L"):
                stem, _, name = label[1:].partition(".")
                kind = "H" if "H" in stem else "N"
                layer, unit = (int(x) for x in stem.split(kind))
                if kind == "N":
                    found += [(f"blocks.{layer}.mlp.{x}", unit) for x in self.of_mlp]
                else:
                    names = [name] if name else "qkv"
                    found += [(f"blocks.{layer}.attn.hook_{x}", unit) for x in names]
            else:
                layer, name = label.split(".")
                if name == "mlp":
                    found += [(f"blocks.{layer}.mlp.{x}", slice(None)) for x in self.of_mlp]
                else:
                    names = "qkv" if name == "attn" else name
                    found += [(f"blocks.{layer}.attn.hook_{x}", slice(None)) for x in names]
        return found

    def __call__(
        self, senders, receivers, freeze="all", where=slice(None), hear=slice(None)
    ) -> np.ndarray:
        recorded = self.sent_to_all(tuple(senders), freeze, where)
        second = {}
        for name, unit in self.places(receivers):
            second.setdefault(name, []).append(unit)
        hooks = {
            name: self.setting([(unit, recorded[name]) for unit in units], hear)
            for name, units in second.items()
        }
        if "logits" in receivers:
            final = f"blocks.{self.n_layers - 1}.hook_resid_post"
            change = recorded[final] - self.base[final]
            hooks[final] = lambda x, hook=None: x + change
        return self.metric(self.run(hooks))

    def sent_to_all(self, senders, freeze, where):
        """What everything that could receive reads in the first pass, by hook name."""
        key = senders, freeze, str(where)
        if key not in self.first_passes:
            recorded = {}

            def recording(name):
                def hook(x, hook=None):
                    recorded[name] = x.clone()

                return hook

            parts = [f"attn.hook_{name}" for name in "qkv"] + [f"mlp.{x}" for x in self.of_mlp]
            parts.append("hook_resid_post")
            names = [f"blocks.{layer}.{x}" for layer in range(self.n_layers) for x in parts]
            hooks = self.sending(senders, freeze, where)
            self.run(hooks | {name: recording(name) for name in names})
            self.first_passes[key] = recorded
        return self.first_passes[key]


def close(found, expected, **tolerances):
    np.testing.assert_allclose(found, expected, **{"rtol": 0, "atol": 1e-10, **tolerances})
