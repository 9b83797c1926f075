"""The figures of the page "On a real model", measured and put into its tables.

python tests/real_page.py                    # measures: build/real_page.json, and prints the tables
python tests/real_page.py --sequences 160    # importance on so many sequences of 128 tokens
python tests/real_page.py --keep             # to tests/real_page.json, and the page's tables anew
python tests/real_page.py --tables           # only the page's tables anew, from that file

Importance takes about a minute a sequence. Each eight of them are kept in build/real_page: a run
that was interrupted, or one with more sequences, goes on from there.
"""

import argparse
import json
import re
from pathlib import Path

from pythia import layout
from real_figures import BUILD, PART, measured

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "real_page.json", HERE.parent / "docs" / "real_model.md"
MODELS = {"smollm2": "SmolLM2", "nano": "nano"}


def tables(figures):
    """Every table of the page by its name, as Markdown, and two numbers within its text."""
    shown = {}
    for name, title in MODELS.items():
        mine = figures[name]
        shown |= {f"{what} of {title}": function(mine) for what, function in BY_LAYER.items()}
        shown[f"tokens of {title}"] = f"{mine['importance_tokens']:,}"
    shown["summary"] = _summary(figures)
    shown["baselines"] = _baselines(figures)
    shown["estimates"] = _estimates(figures)
    return shown


def _norms(mine):
    heads = ("layer", "stream", "at the first", "attention", "at the first", "MLP", "at the first")
    names = [f"{name}{end}" for name in ("stream", "attn", "mlp") for end in ("", "_first")]
    rows = [[layer, *(_at(mine[name], layer) for name in names)] for layer in _layers(mine)]
    rows.append(["final", *(_at(mine[name], -1) for name in names[:2]), *[""] * 4])
    return _table(heads, rows)


def _firing(mine):
    heads = ("layer", "attention to the first", "heads over half", "fires", "`post` > 0")
    heads = (*heads, "written while closed", "never", "nearly always")
    names = ("looked_at", "heads_over_half", "fires", "post_positive", "written_closed", "dead")
    rows = [
        [layer, *(_at(mine[name], layer) for name in (*names, "above_0.99"))]
        for layer in _layers(mine)
    ]
    return _table(heads, rows)


def _importance(mine):
    heads = ("layer", "MLP direct", "MLP total", "attention direct", "attention total")
    names = [f"{kind}_kl_{way}" for kind in ("mlp", "attn") for way in ("direct", "total")]
    rows = [
        [layer, *(f"{mine[n][layer]:.3f} ± {mine[f'{n}_se'][layer]:.3f}" for n in names)]
        for layer in _layers(mine)
    ]
    return _table(heads, rows)


BY_LAYER = {"norms": _norms, "firing": _firing, "importance": _importance}


def _summary(figures):
    rows = {
        "loss, nats a token": lambda x: f"{x['loss']:.2f}",
        "largest entry at the first position": lambda x: f"{x['massive']['entry']:,.0f}",
        "where": lambda x: "after layer {layer}, dimension {dimension}".format(**x["massive"]),
        "median entry elsewhere in that stream": lambda x: f"{x['massive']['elsewhere']:.2f}",
        "strongest induction head": lambda x: "{head}, {score:.2f}".format(**x["induction"]),
        "induction heads (above 0.4)": lambda x: x["induction"]["above_0.4"],
    }
    cells = [[what, *(value(figures[m]) for m in MODELS)] for what, value in rows.items()]
    return _table(["", *MODELS.values()], cells)


def _baselines(figures):
    names = ("zero", "mean", "zero, all", "mean, all")
    heads = ("", "zero", "mean", "zero, the first as well", "mean, the first as well")
    rows = [
        [f"{title} {component}", *(f"{values[name]:.3f}" for name in names)]
        for model, title in MODELS.items()
        for component, values in figures[model]["baselines"].items()
    ]
    return _table(heads, rows)


def _estimates(figures):
    heads = ("", "layer", "exact", "one step", "four steps", "correlation, one step", "four steps")
    names = ("exact", "estimate_1", "estimate_4", "correlation_1", "correlation_4")
    rows = []
    for model, title in MODELS.items():
        layers = _layers(figures[model])
        chosen = sorted({*layers[:2], *layers[2:][:: max(1, len(layers) // 5)], layers[-1]})
        for site, values in figures[model]["estimates"].items():
            rows += [
                [f"{title} `{site}`", layer, *(f"{values[n][layer]:.2f}" for n in names)]
                for layer in chosen
            ]
    return _table(heads, rows)


def _layers(mine):
    return range(len(mine["mlp"]))


def _at(values, layer):
    value = values[layer]
    if isinstance(value, int):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def page_with(text, shown):
    """The page with its tables, each of which stands between two comments with its name."""
    for name, table in shown.items():
        between = re.compile(rf"(<!-- {name} -->)(\n?).*?(<!-- end -->)", re.DOTALL)
        text, found = between.subn(lambda m, t=table: m[1] + m[2] + t + m[2] + m[3], text)
        if found != 1:
            raise ValueError(f"the page has {found} places for {name!r}; wanted one")
    return text


def main():
    """Measure, write down and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=PART, help="of importance, in eights")
    parser.add_argument("--keep", action="store_true", help="put it into the repository")
    parser.add_argument("--tables", action="store_true", help="only the page's tables anew")
    options = parser.parse_args()
    if options.tables:
        figures = json.loads(FIGURES.read_text())
    else:
        figures = {name: measured(name, options.sequences) for name in MODELS}
        BUILD.mkdir(exist_ok=True)
        out = FIGURES if options.keep else BUILD / FIGURES.name
        out.write_text(layout(figures) + "\n")
    shown = tables(figures)
    if options.keep or options.tables:
        PAGE.write_text(page_with(PAGE.read_text(), shown))
    print("\n\n".join(f"{name}\n{table}" for name, table in shown.items()))


if __name__ == "__main__":
    main()
