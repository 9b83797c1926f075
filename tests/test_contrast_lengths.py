"""Contrasts whose pairs differ in length: every prompt has the numbers that it has alone."""

import numpy as np
import pytest
import torch
from random_models import BACKENDS, VOCABULARY, tiny_tokenizer, unchecked

import mlp_interp as mi
from mlp_interp import Contrast, metrics
from mlp_interp.gradients import as_grid, compare
from mlp_interp.interchange import Question
from mlp_interp.runs import run

LENGTHS = (7, 5, 7)
PADDING = 17
MODELS = [
    (("parallel", BACKENDS[0], "folded"), "hooks"),
    (("sequential", BACKENDS[-1], "raw"), "auto"),
    (("gpt2", BACKENDS[0], "raw"), "auto"),
]


def alone(lengths=LENGTHS):
    """Pairs of these lengths, each a contrast by itself."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for number, length in enumerate(lengths):
        clean = torch.randint(1, VOCABULARY, (1, length), generator=generator)
        corrupted = clean.clone()
        for position in (2, 3):
            corrupted[:, position] = (clean[:, position] + 7 + position) % VOCABULARY
        answers = torch.tensor([number + 3])
        found.append(
            Contrast(
                clean_tokens=clean, corrupted_tokens=corrupted, answers=answers, foils=answers + 50
            )
        )
    return found


def together(pairs, padding=PADDING):
    """The same as one contrast, shorter ones padded."""
    longest = max(pair.length for pair in pairs)
    sides = (
        torch.cat(
            [
                torch.nn.functional.pad(getattr(p, name), (0, longest - p.length), value=padding)
                for p in pairs
            ]
        )
        for name in ("clean_tokens", "corrupted_tokens")
    )
    return Contrast(
        *sides,
        answers=torch.cat([pair.answers for pair in pairs]),
        foils=torch.cat([pair.foils for pair in pairs]),
        lengths=torch.tensor([pair.length for pair in pairs]),
    )


def assert_as_alone(whole, pairs, analysis, tolerance, **options):
    """Each prompt's part of a result is that of the analysis of this prompt, NaN elsewhere."""
    assert whole.prompt.values.tolist() == list(range(len(pairs)))
    for number, pair in enumerate(pairs):
        part, expected = whole.sel(prompt=number), analysis(pair, **options).isel(prompt=0)
        for name, wanted in expected.data_vars.items():
            if name not in whole or "prompt" not in whole[name].dims:
                continue
            found = part[name]
            if "pos" in wanted.dims:
                there = found.sel(pos=wanted.pos)
                beyond = found.drop_sel(pos=wanted.pos)
                assert (beyond.isnull() | (beyond == 0)).all(), name
                assert beyond.isnull().all() or name == "changed"
                found = there
            np.testing.assert_allclose(
                found.transpose(*wanted.dims), wanted, atol=tolerance, rtol=tolerance, err_msg=name
            )
        for name in ("clean_token", "corrupted_token"):
            if name in expected.coords:
                texts = part[name].sel(pos=expected.pos).values.tolist()
                assert texts == expected[name].values.tolist()
                assert (part[name].drop_sel(pos=expected.pos) == "").all()


@pytest.mark.parametrize(
    ("sites", "direction", "dtype", "tolerance"),
    [
        (["resid_pre", "attn_out"], "noising", torch.float64, 1e-10),
        (["z", "k"], "denoising", torch.float64, 1e-10),
        (["post"], "denoising", torch.float32, 1e-5),
    ],
)
def test_patches_are_those_of_each_prompt_alone(kind, engine, sites, direction, dtype, tolerance):
    model = kind("parallel", BACKENDS[0], "folded", dtype=dtype)
    pairs = alone()
    options = {"sites": sites, "engine": engine, "direction": direction, "layers": [1]}
    if sites == ["z", "k"]:
        options["positions"] = [-1, 2]
    if sites == ["post"]:
        options["neurons"] = [3, 5]

    def analysis(pair, **options):
        return mi.patch(model, pair, **options)

    whole = analysis(together(pairs), **options)
    # Where both runs' metrics are close their ratio is not known as well as they are.
    drawn = whole.drop_vars("normalized") if dtype == torch.float32 else whole
    assert_as_alone(drawn, pairs, analysis, tolerance, **options)
    assert whole.attrs["data"] == "prompts: 3 pairs of 5 to 7 tokens"
    assert whole.check_everything < 1e-3
    if sites == ["z", "k"]:
        assert whole.pos.values.tolist() == [2, 4, 6]
        there = whole.raw.isel(site=0, layer=0, head=0).notnull()
        assert there.pos[there.sel(prompt=1)].values.tolist() == [2, 4]


@pytest.mark.parametrize(("model", "engine"), MODELS)
def test_estimates_edges_and_paths_are_those_of_each_prompt_alone(kind, engine, model):
    model = kind(*model, dtype=torch.float64)
    pairs = alone()
    contrast = together(pairs)

    def estimates(pair, **options):
        return mi.attribution_patch(model, pair, engine=engine, steps=2, memory=0.5, **options)

    assert_as_alone(estimates(contrast), pairs, estimates, 1e-10)
    kept = estimates(contrast, sites=["post"], neuron_positions=True)
    assert_as_alone(kept, pairs, estimates, 1e-10, sites=["post"], neuron_positions=True)

    def edges(pair, **options):
        return mi.edge_attribution(model, pair, engine=engine, **options)

    each = edges(contrast)
    assert_as_alone(each, pairs, edges, 1e-10)
    np.testing.assert_allclose(
        edges(contrast, per_prompt=False).estimate, each.estimate.mean("prompt"), atol=1e-10
    )

    def paths(pair, **options):
        return mi.path_patch(model, pair, engine=engine, senders="component", **options)

    options = {"receivers": ["2.mlp", "L2H1.q"], "positions": [-2, 2], "receiver_positions": [-1]}
    assert_as_alone(paths(contrast, **options), pairs, paths, 1e-10, **options)


def test_faithfulness_and_hypotheses_are_those_of_each_prompt_alone(kind):
    model = kind("parallel", BACKENDS[0], "folded", dtype=torch.float64)
    pairs = alone()
    contrast = together(pairs)
    scores = mi.edge_attribution(model, contrast, per_prompt=False)

    def curve(pair, **options):
        return mi.faithfulness(model, pair, edges=scores, fractions=[0.1, 0.5], **options)

    whole = curve(contrast, memory=0.5)
    assert_as_alone(whole, pairs, curve, 1e-10)
    share = (whole.metric - whole.corrupted).mean("prompt") / (whole.clean - whole.corrupted).mean(
        "prompt"
    )
    np.testing.assert_allclose(whole.faithfulness, share, atol=1e-10)
    for nodes in (["L1H2", "2.mlp"], [["embed", "L0H1", "L2H0.v"]]):

        def claim(pair, nodes=nodes, **options):
            return mi.evaluate_hypothesis(model, pair, nodes=nodes, draws=2, **options)

        found, joined = claim(contrast), claim(pairs)
        for name in ("circuit", "unexplained", "aue", "aue_se", "ate", "explained", "random_aue"):
            np.testing.assert_allclose(found[name], joined[name], atol=1e-10)
        assert found.answer.values.tolist() == joined.answer.values.tolist()


@pytest.mark.parametrize("made", ["cache", "run"])
def test_attributions_are_those_of_each_prompt_alone(kind, backend, made):
    model = kind("sequential", backend, "raw", dtype=torch.float64)
    pairs = alone()
    contrast = together(pairs)

    def ran(pair):
        if made == "run":
            return run(model, pair.clean_tokens, sites=SITES)
        with torch.no_grad():
            return model.run_with_cache(pair.clean_tokens)[1]

    def shares(pair, **options):
        found = mi.attribute_logits(model, ran(pair), pair, level="head", **options)
        return found.to_dataset(name="shares")

    for positions in (-1, [1, -2], None):
        for foils in (None, "mean", [60, 61, 62]):
            whole = shares(contrast, positions=positions, foils=foils)
            for number, pair in enumerate(pairs):
                one = foils[number] if isinstance(foils, list) else foils
                expected = shares(pair, positions=positions, foils=one).shares[0]
                found = whole.shares.sel(prompt=number)
                np.testing.assert_allclose(found.sel(pos=expected.pos), expected, atol=1e-10)
                assert found.drop_sel(pos=expected.pos).isnull().all()
    assert whole.shares.attrs["data"] == "prompts: 3 pairs of 5 to 7 tokens"
    sources = mi.attribute_sources(model, ran(contrast), contrast, heads=["L2H1"])
    assert sources.pos.dims == ("prompt",)
    assert sources.pos.values.tolist() == [6, 4, 6]
    for number, pair in enumerate(pairs):
        expected = mi.attribute_sources(model, ran(pair), pair, heads=["L2H1"])[0]
        found = sources.sel(prompt=number).dropna("source")
        np.testing.assert_allclose(found, expected, atol=1e-10)
        if made == "run":  # it knows its tokens
            read = [*expected.source_token.values, "", ""][: sources.sizes["source"]]
            assert sources.source_token.sel(prompt=number).values.tolist() == read
            padded = mi.attribute_sources(model, ran(contrast), 5, attention_mask=contrast.real)
            assert padded.source_token.sel(prompt=number).values.tolist() == read


SITES = [
    mi.Site(name, layer)
    for layer in range(3)
    for name in ("attn_out", "mlp_out", "z", "q", "k", "v", "pre", "post")
] + [mi.Site("embed")]


def test_runs_of_padded_prompts_are_cut(kind):
    """Whatever they are padded with: what stands there was never asked about."""
    model = kind("parallel", BACKENDS[0], "folded", dtype=torch.float64)
    pairs = alone()
    contrast = together(pairs)
    padded = together(pairs)
    sides = []
    for tokens in (padded.clean_tokens, padded.corrupted_tokens):
        tokens = tokens.masked_fill(~contrast.real, 40)
        sides.append(run(model, tokens, sites=SITES))
    runs = tuple(sides)
    edges = mi.edge_attribution(model, contrast)
    for analysis, options in (
        (mi.patch, {"sites": ["z", "pattern"], "positions": "each"}),
        (mi.attribution_patch, {"sites": ["z"]}),
        (mi.edge_attribution, {}),
        (mi.path_patch, {"receivers": ["2.mlp"]}),
        (mi.faithfulness, {"edges": edges, "fractions": [0.2]}),
        (mi.evaluate_hypothesis, {"nodes": ["2.mlp"], "draws": 1}),
    ):
        found, expected = (
            analysis(model, contrast, runs=given, **options) for given in (runs, None)
        )
        for name, values in expected.data_vars.items():
            np.testing.assert_allclose(found[name], values, atol=1e-9, err_msg=name)


def test_metrics_of_ones_own_see_the_prompts_own_numbers(kind):
    model = kind("parallel", BACKENDS[0], "folded", dtype=torch.float64)
    pairs = alone()
    contrast = together(pairs)
    tokens = torch.tensor([9, 8, 7])

    def function(logits, prompts):
        return logits[:, 0].gather(-1, tokens[prompts][:, None])[:, 0] * (prompts + 1)

    own = metrics.Custom(name="own", unit="logits", function=function, tokens=tokens)
    found = mi.patch(model, contrast, own, sites="z")
    for number, pair in enumerate(pairs):
        expected = mi.patch(model, pair, metrics.logit(tokens[[number]]), sites="z").raw[..., 0]
        np.testing.assert_allclose(found.raw[..., number], expected * (number + 1), atol=1e-10)
    for name in metrics.METRICS:
        found = mi.patch(model, contrast, name, sites="z", layers=[1])
        for number, pair in enumerate(pairs):
            expected = mi.patch(model, pair, name, sites="z", layers=[1])
            np.testing.assert_allclose(found.raw[..., number], expected.raw[..., 0], atol=1e-10)
    cut = own.of_prompts([2, 1])
    logits = torch.arange(2.0 * VOCABULARY).view(2, 1, -1)
    assert cut.function(logits, torch.tensor([0, 1])).tolist() == [7 * 3, (VOCABULARY + 8) * 2]


def test_estimates_are_compared_with_exact_patches(kind):
    model, pairs = kind("parallel", BACKENDS[0], "folded", dtype=torch.float64), alone()
    contrast = together(pairs)
    exact = mi.patch(model, contrast, sites=["attn_out", "mlp_out"])
    estimate = mi.attribution_patch(model, contrast, sites=["attn_out", "mlp_out"])
    found = compare(exact, estimate, worst=500)
    last = found.isel(layer=-1)
    assert last.error.notnull().all()
    cells = as_grid(estimate, ["attn_out", "mlp_out"]).estimate
    off = np.abs((cells - (exact.raw - exact.corrupted)).values)
    off = np.sort(off[np.isfinite(off)])[::-1]
    mine = np.abs(found.worst_exact - found.worst_estimate).values
    np.testing.assert_allclose(mine[: len(off)], off[: len(mine)], atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": [6]}, r"positions=\[6\]; wanted integers from -5 to 4"),
        ({"positions": [2, -3]}, r"positions=\[2, -3\]; wanted .*each once"),
        ({"metric": metrics.kl(positions=(5,))}, r"reads positions=\(5,\); wanted some from -5"),
    ],
)
def test_positions_that_a_prompt_lacks_are_refused_before_the_work(kind, options, message):
    model = kind()
    contrast = together(alone())
    with pytest.raises(ValueError, match=message):
        mi.patch(model, contrast, **options)
    with pytest.raises(ValueError, match=message):
        mi.path_patch(model, contrast, **options)


def test_an_engine_is_not_asked_about_padding(kind):
    question = Question.of(kind(), together(alone()), "logit_difference")
    for ask in (question.pair, question.tokens, question.embedded):
        with pytest.raises(ValueError, match="prompts of 5 to 7 tokens; wanted one length"):
            ask()
    assert [part.numbers for part in question.by_length()] == [(1,), (0, 2)]
    assert [part.numbers for part in question.parts(1)] == [(1,), (0,), (2,)]


def test_a_metric_that_is_not_finite_names_the_prompt(kind):
    def function(logits, prompts):
        return torch.where(prompts == 2, torch.nan, logits[:, 0, 5])

    own = metrics.Custom(name="own", unit="logits", function=function)
    with pytest.raises(ValueError, match="after the clean prompt 2; wanted a finite"):
        mi.patch(kind(), together(alone()), own)


def test_texts_of_several_lengths():
    tokenizer = tiny_tokenizer()
    clean = ["the cat sat", "the cat sat on the mat", "the mat sat"]
    corrupted = ["the mat sat", "the mat sat on the mat", "the cat sat"]
    answers, foils = [" cat", " cat", " mat"], [" mat", " sat", " cat"]
    contrast = Contrast.of(
        tokenizer, clean, corrupted, answers, foils, subjects=["cat", "cat", "mat"]
    )
    singles = [
        Contrast.of(tokenizer, *pair[:4], subjects=[pair[4]])
        for pair in zip(clean, corrupted, answers, foils, ["cat", "cat", "mat"], strict=True)
    ]
    assert contrast.lengths.tolist() == [s.length for s in singles]
    assert contrast.length == singles[1].length
    assert contrast.clean_text == [s.clean_text[0] for s in singles]
    assert contrast.corrupted_text == [s.corrupted_text[0] for s in singles]
    assert contrast.token_text("corrupted") == [s.token_text("corrupted")[0] for s in singles]
    assert contrast.rows() == [s.clean_tokens[0].tolist() for s in singles]
    for number, single in enumerate(singles):
        one = contrast[number]
        for name in ("clean_tokens", "corrupted_tokens", "subject", "differs", "answers"):
            assert torch.equal(getattr(one, name), getattr(single, name)), name
        assert one.lengths is None
    assert contrast.differs.sum() == contrast.subject.sum() == 3
    assert contrast[[0, 2]].lengths is None
    assert contrast[[0, 2]].length == singles[0].length
    assert contrast[1:].lengths.tolist() == contrast.lengths.tolist()[1:]
    assert contrast.swap().clean_text == contrast.corrupted_text
    assert contrast.swap().lengths.tolist() == contrast.lengths.tolist()
    assert f"length={singles[0].length} to {singles[1].length})" in repr(contrast)
    assert contrast.attrs["data"] == f"prompts: 3 pairs of {contrast.length_text} tokens"
    page = contrast._repr_html_()
    assert page.count("<mark>") == 6
    assert page.count("<td") == 12
    assert page.count("&lt;|endoftext|&gt;") == 6


def test_what_is_padded_with_does_not_matter():
    pairs = alone()
    one, other = together(pairs), together(pairs, padding=-100)
    assert torch.equal(one.clean_tokens, other.clean_tokens)
    assert torch.equal(one.real.sum(-1), torch.tensor(LENGTHS))
    assert not one.differs[~one.real].any()
    assert torch.equal(one.clean_tokens[0, :7], pairs[0].clean_tokens[0])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([3, 0]), r"lengths=\[3, 0\]; wanted integers from 1, the largest of them 3"),
        (torch.tensor([2, 2]), r"lengths=\[2, 2\]; wanted .* the largest of them 3"),
        (torch.tensor([2, 4]), r"lengths=\[2, 4\]; wanted"),
        (torch.tensor([3]), r"lengths=\(1,\); wanted one integer for each of 2 prompts"),
        (torch.tensor([3.0, 2.0]), r"lengths=\(2,\); wanted one integer for each"),
        ([3, 2], "lengths=list; wanted one integer for each"),
    ],
)
def test_bad_lengths(lengths, message):
    tokens = torch.tensor([[0, 5, 7], [0, 5, 8]])
    make = unchecked(Contrast.__init__)
    with pytest.raises(ValueError, match=message):
        make(
            object.__new__(Contrast),
            clean_tokens=tokens,
            corrupted_tokens=tokens + 1,
            answers=torch.tensor([1, 2]),
            foils=torch.tensor([3, 4]),
            lengths=lengths,
        )


def test_doses_of_unequal_pairs_are_those_of_each_alone(kind, backend):
    model, pairs = kind("parallel", backend), alone()
    options = {
        "direction": mi.steering.output_direction(model, "L1N3"),
        "coefficients": [2.0],
        "sweep": mi.SweepOptions(batch_size=2),
    }
    found = mi.steering.dose_response(model, together(pairs), "logit_difference", **options)
    each = [mi.steering.dose_response(model, p, "logit_difference", **options) for p in pairs]
    expected = np.concatenate([one.logit_difference_by_prompt.values for one in each], axis=-1)
    np.testing.assert_allclose(found.logit_difference_by_prompt, expected, atol=1e-4)


def test_function_vectors_of_unequal_pairs_are_read_at_each_ones_end(kind, backend):
    """Against plain hooks, each pair by itself."""
    model, pairs, name = kind("parallel", backend), alone(), "blocks.1.attn.hook_z"
    task = together(pairs)
    ends = [model.run_with_cache(p.clean_tokens)[1][name][0, -1].detach() for p in pairs]
    mean = torch.stack(ends).mean(0)

    def put(z, hook=None):
        z = z.clone()
        z[:, -1, 2] = mean[2]
        return z

    rises = []
    for pair in pairs:
        with torch.no_grad():
            before = model(pair.corrupted_tokens)
            after = model.run_with_hooks(pair.corrupted_tokens, fwd_hooks=[(name, put)])
        before, after = (x[0, -1].log_softmax(-1)[pair.answers[0]] for x in (before, after))
        rises.append(float(after - before))
    effects = mi.steering.head_effects(model, task, batch_size=2)
    np.testing.assert_allclose(effects.sel(layer=1, head=2), np.mean(rises), atol=1e-4)
    vector = mi.steering.function_vector(model, task, heads=["L1H2"], layers=1)
    written = (mean[2] @ model.blocks[1].attn.W_O[2]).detach()
    np.testing.assert_allclose(vector.squeeze("layer"), written, atol=1e-5)
