"""Pictures of every figure and view, with the call that makes it: docs/gallery.md.

python tests/gallery.py                 # all of them, and the page
python tests/gallery.py plots.heads     # these alone, and the page

Wants a headless Chromium. The page shows the calls that made its pictures, on nano.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import OPTIONS, PROGRAM

import mlp_interp as mi

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "_static" / "gallery"
PAGE = ROOT / "docs" / "gallery.md"
WIDE = 740

# What all calls start from; the page shows it, too.
START = """
import mlp_interp as mi

model = mi.load_model("nano")
corpus = mi.load_corpus("nano", model, sequences=32, length=64)
task = mi.prompts.ioi(model, n=16, seed=0)
clean = mi.run(model, task.clean_tokens)
"""

PLOTS = {
    "importance": "mi.plots.importance(mi.subupdate_importance(model, corpus))",
    "direct_vs_total": "mi.plots.direct_vs_total(mi.subupdate_importance(model, corpus))",
    "ranges": 'mi.plots.ranges(mi.ablate_ranges(model, corpus, kind="mlp"))',
    "norms": "mi.plots.norms(mi.norms(model, corpus))",
    "attribution": "mi.plots.attribution(mi.attribute_logits(model, clean, task))",
    "heads": 'mi.plots.heads(mi.attribute_logits(model, clean, task, level="head"))',
    "neurons": 'mi.plots.neurons(mi.attribute_logits(model, clean, task, level="neuron"))',
    "sources": "mi.plots.sources(mi.attribute_sources(model, clean, task))",
    "patching": """
grid = mi.patch(model, task, sites=["resid_pre", "mlp_out"])
mi.plots.patching(grid, prompt=0)""",
    "causal_trace": (
        'mi.plots.causal_trace(mi.causal_trace(model, "The capital of France is", "France"))'
    ),
    "estimate": """
exact = mi.patch(model, task, sites="z")
compared = mi.gradients.compare(exact, mi.attribution_patch(model, task))
mi.plots.estimate(compared.exact, compared.estimate)""",
    "edges": "mi.plots.edges(mi.edge_attribution(model, task))",
    "compare": """
texts = {"ioi": task, "facts": mi.prompts.facts(model, n=16, seed=0)}
heads = {name: mi.patch(model, pairs, sites="z") for name, pairs in texts.items()}
mi.plots.compare(mi.compare(heads), top=12)""",
    "activation_fractions": "mi.plots.activation_fractions(mi.neurons.activity(model, corpus))",
    "activity_by_position": "mi.plots.activity_by_position(mi.neurons.activity(model, corpus))",
    "receptor_value": "mi.plots.receptor_value(mi.neurons.activity(model, corpus))",
    "activation_histogram": (
        'mi.plots.activation_histogram(mi.neurons.activity(model, corpus), "L3N506")'
    ),
    "update_shares": "mi.plots.update_shares(mi.neurons.update_shares(model, corpus))",
    "roles": "mi.plots.roles(mi.heads.roles(model))",
    "positions": "mi.plots.positions(mi.heads.positions(model, distances=16))",
    "compose": 'mi.plots.compose(mi.heads.compose(model, readers="k"))',
    "scores": """
twice = mi.load_corpus("nano", model, sequences=1, length=24).tokens[:, 1:]
twice = [[0, *twice[0].tolist(), *twice[0].tolist()]]
parts = mi.heads.split_scores(model, twice, "L1H3", level="head", queries=-3)
mi.plots.scores(parts, key=22)""",
    "memories": "mi.plots.memories(mi.neurons.memories(model, corpus))",
    "update_events": "mi.plots.update_events(mi.neurons.update_events(model, corpus, sample=4))",
    "feature_index": """
names = ["ioi", "facts", "refusal", "sentiment", "greater_than"]
sides = [getattr(mi.prompts, name)(model, n=8, seed=0).rows("clean") for name in names]
texts = [text for side in sides for text in side]
labels = {name: [n // 8 == place for n in range(40)] for place, name in enumerate(names)}
mi.plots.feature_index(mi.features.index(model, texts, labels))""",
    "universal": """
other = mi.load_model("nano-1")
mi.plots.universal(mi.features.universal(model, other, corpus))""",
    "revisions": 'mi.plots.revisions(mi.load("docs/_static/nano-1-revisions.nc"))',
    "lens": 'mi.plots.lens(mi.lens.read(model, "The capital of France is"))',
    "lens_depth": """
lenses = {"logit": mi.lens.logit(model), "last block": mi.lens.decoder(model, 1)}
mi.plots.lens_depth(mi.lens.over(model, corpus, lenses))""",
    "trajectory": "mi.plots.trajectory(mi.lens.read(model, task, positions=-1))",
    "dose_response": """
asked, harmless = mi.steering.by_answer(mi.prompts.refusal(model, n=32, seed=0), " Sorry")
refusal = mi.steering.mean_difference(model, asked, harmless)
doses = mi.steering.dose_response(
    model,
    asked,
    mi.steering.Refusal(),
    direction=refusal,
    coefficients=[-1, -0.5, 0, 0.5, 1],
    layers=2,
    corpus=corpus,
    generation=mi.steering.GenerationOptions(max_new_tokens=4),
)
mi.plots.dose_response(doses)""",
    "footprint": """
keys = mi.rewrites.associations(model, corpus[8:], layers=[0])
fact = "Sweden", "The capital of Sweden is", " Berlin"
found = mi.rewrites.rewrite(model, *fact, layer=0, keys=keys)
mi.plots.footprint(mi.rewrites.footprint(model, found, corpus[:8]))""",
    "probe": """
text = [f"The {event} lasted from the year 17{{year}} to the year 17" for event in ("war", "trial")]
rows = [{"year": f"{n:02d}", "n": n} for n in range(2, 99)]
years = mi.probes.Labelled.of(model, rows, text=text, y="n", entity="year", position="last")
mi.plots.probe(mi.probes.probe(model, years))""",
    "sparse_probe": """
pairs = mi.prompts.refusal(model, n=50, seed=0)
sides = zip(pairs.clean_text + pairs.corrupted_text, pairs.answer_text + pairs.foil_text)
rows = [{"text": text, "answer": answer} for text, answer in sides]
asked = mi.probes.Labelled.of(model, rows, text="{text}", y="answer", prepend_bos=False)
mi.plots.sparse_probe(mi.probes.sparse_probe(model, asked))""",
    "compare_directions": """
pairs = mi.prompts.refusal(model, n=50, seed=0)
sides = zip(pairs.clean_text + pairs.corrupted_text, pairs.answer_text + pairs.foil_text)
rows = [{"text": text, "answer": answer} for text, answer in sides]
asked = mi.probes.Labelled.of(model, rows, text="{text}", y="answer", prepend_bos=False)
answers = {answer: answer for answer in asked.classes}
mi.plots.compare_directions(mi.probes.compare_directions(model, asked, answers))""",
    "spectrum": "mi.plots.spectrum(mi.superposition.spectrum(model, corpus))",
    "noise_tolerance": """
noise = mi.superposition.noise_tolerance(model, corpus.tokens[:8])
mi.plots.noise_tolerance(noise)""",
    "toy": """
pentagon = mi.superposition.toy.toy_models(5, 2, [1.0, 0.3, 0.05], steps=500)
mi.plots.toy(pentagon)""",
    "reachable": """
sizes = [1, 2, 5, 10, 20, 30, 35, 40, 45, 50, 55, 60]
mi.plots.reachable(mi.reach.reachable_share(model, sizes, n=8, corpus=corpus))""",
    "replacement": """
heldout = mi.load_corpus("nano", model, sequences=48, length=64, seed=1)
options = {"reads": "mlp_in", "n_latents": 256, "k": 16, "steps": 80, "batch_size": 256}
trained = [mi.latents.train(model, corpus, f"{n}.mlp", **options) for n in range(4)]
mi.plots.replacement(mi.latents.replace(model, trained, heldout))""",
    "absorption": """
from mlp_interp.nano import words

more = mi.load_corpus("nano", model, sequences=200, length=64)
sae = mi.latents.train(model, more, "0.mlp", n_latents=512, k=8, steps=150)
lists = {"names": words.NAMES, "countries": list(words.COUNTRIES), "cities": words.CITIES}
lists |= {"colours": words.COLOURS, "numbers": words.NUMBERS, "objects": words.OBJECTS}
kinds = {kind: [f"They spoke of {word}" for word in some] for kind, some in lists.items()}
mi.plots.absorption(mi.latents.absorption(model, sae, kinds, share=0.3))""",
}

VIEWS = {
    "tokens": """
lost = mi.ablate_total(model, task.clean_tokens, ["2.mlp"])
kl = lost.kl.isel(component=0, prompt=0)
mi.views.tokens(task.token_text()[0], kl, caption="KL without 2.mlp")""",
    "token_values": """
shares = mi.attribute_logits(model, clean, task, positions=None)[0]
words = ["embed", "0.mlp", "3.mlp"]
mi.views.token_values(task.token_text()[0], {w: shares.sel(component=w) for w in words})""",
    "attention": """
_, cache = model.run_with_cache(task.clean_tokens[:1])
mi.views.attention(task.token_text()[0], cache["pattern", 1][0])""",
    "activations": """
texts = ["Il aime le pain.", "He likes the bread.", "Elle voit le chat."]
mi.views.activations(mi.neurons.activations(model, "L0N433", texts))""",
    "neuron": 'mi.views.neuron(mi.neurons.neuron_page(model, "L3N506", corpus))',
    "lens": 'mi.views.lens(mi.lens.read(model, "The capital of France is"))',
    "circuit": 'mi.views.circuit(mi.heads.induction(model), "L0H0 → L1H3")',
    "table": 'mi.views.table(mi.weights.table(model, "L1H0.OV", k=6), shown=12)',
    "compare": """
short = mi.steering.GenerationOptions(max_new_tokens=16)
found = mi.steering.generate_compare(
    model, ["Claire", "Tom"], mi.steering.hold("L0N433", 5.7), generation=short
)
mi.views.compare(found)""",
    "reachable": """
found = mi.reach.reachable(model, [[" Paris", " London", " dog"], [" the", " a", " in"]])
near = mi.reach.nearest_streams(model, found, corpus, k=2)
mi.views.reachable(found, near)""",
    "rewrite": """
keys = mi.rewrites.associations(model, corpus, layers=[0])
fact = "Sweden", "The capital of Sweden is", " Berlin"
found = mi.rewrites.rewrite(model, *fact, layer=0, keys=keys)
scores = mi.rewrites.score_rewrite(
    model,
    found,
    paraphrases=["In Sweden, the capital is", "The president of Sweden lives in"],
    neighbours=["The capital of Norway is", "The capital of Denmark is"],
    same_subject=["The language of Sweden is", "In Sweden, people speak"],
)
mi.views.rewrite(scores)""",
}

INTRO = """\
# Gallery

Every figure and view with the call that made it, on the embedded model. Figures are plotly's: point
at a mark for its name, its value and its error; `figure.write_html("figure.html")` keeps one. Views
show themselves in a notebook, and `view.save("view.html")` keeps them. `make gallery` draws this
page anew.

All calls start from this:

```python
{start}
```
"""


def code_of(call: str) -> str:
    """A call as the page shows it."""
    return call.strip()


def value_of(call: str, names: dict[str, object]) -> object:
    """What the last expression of a call is."""
    *before, last = re.split(r"\n(?=mi\.)", "\n" + code_of(call))
    exec("\n".join(before), names)
    return eval(last.strip(), names)


def picture(shown: object, path: Path) -> None:
    """A screenshot of a figure, or of a view, at the width of a notebook."""
    with tempfile.TemporaryDirectory() as folder:
        page, height = Path(folder) / "page.html", 420
        if hasattr(shown, "write_html"):
            height = int(shown.layout.height or height) + 20
            shown.update_layout(width=WIDE - 20).write_html(page, config={"displayModeBar": False})
        else:
            shown.save(page)
            height = min(int(getattr(shown, "height", 900)), 900)
        shoot(page, path, wide=WIDE, high=height)


def shoot(page: Path, path: Path, *, wide: int, high: int) -> None:
    """A screenshot of the top of a page."""
    command = [
        str(PROGRAM), *(o for o in OPTIONS if "logging" not in o), "--hide-scrollbars",
        f"--screenshot={path}", f"--window-size={wide},{high}", page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def page() -> str:
    """The page, with every picture."""
    parts = [INTRO.format(start=START.strip())]
    for module, calls in (("plots", PLOTS), ("views", VIEWS)):
        parts.append(f"## {module.capitalize()}\n")
        parts += [
            f"### `mi.{module}.{name}`\n\n![{name}](_static/gallery/{module}.{name}.png)\n\n"
            f"```python\n{code_of(call)}\n```\n"
            for name, call in calls.items()
        ]
    return "\n".join(parts)


def main(wanted: list[str]) -> None:
    """Draw the pictures and write the page."""
    calls = every()
    unknown = {*wanted} - {*calls}
    if unknown:
        raise SystemExit(f"no figure {sorted(unknown)}; wanted some of {sorted(calls)}")
    PICTURES.mkdir(parents=True, exist_ok=True)
    names: dict[str, object] = {}
    exec(START, names)
    for name in wanted or calls:
        picture(value_of(calls[name], names), picture_of(name))
        print(name, flush=True)
    PAGE.write_text(page())
    if not wanted:
        report()
        explorer()


def report() -> None:
    """The top of the report on nano, for the README."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.html"
        subprocess.run([sys.executable, "-m", "mlp_interp", "report", "--out", out], check=True)
        shoot(out, ROOT / "docs" / "_static" / "report.png", wide=1200, high=1100)


def explorer() -> None:
    """The explorer on nano, with one MLP that was clicked on."""
    click = """<script>setTimeout(() => {
      [...document.querySelectorAll(".cell")].find((x) => x.title.startsWith("3.mlp")).click();
    }, 300);</script></body>"""
    seen = mi.explore(mi.load_model("nano"), "The capital of France is")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "explorer.html"
        out.write_text(seen.html().replace("</body>", click))
        shoot(out, ROOT / "docs" / "_static" / "explorer.png", wide=1100, high=620)


def every() -> dict[str, str]:
    """All calls, as ``plots.heads``."""
    by_module = {"plots": PLOTS, "views": VIEWS}
    return {f"{m}.{name}": call for m, calls in by_module.items() for name, call in calls.items()}


def picture_of(name: str) -> Path:
    """Where the picture of a figure or view lies."""
    return PICTURES / f"{name}.png"


def missing() -> set[str]:
    """Public figures and views that the page lacks."""
    public = {f"plots.{name}" for name in mi.plots.__all__}
    shown = (name for name in mi.views.__all__ if name.islower() and name != "share")
    public |= {f"views.{name}" for name in shown}
    return public ^ {*every()}


if __name__ == "__main__":
    main(sys.argv[1:])
