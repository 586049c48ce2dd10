"""The search space: its moves stay inside, its text forms round-trip, and bad input is refused in one clear line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from llmpp_core.space.architecture import SPAN_LAYERS, Architecture
from llmpp_core.space.search_space import HAT_WMT, SPACES, TINY, SearchSpace

quick = settings(max_examples=50)
spaces = st.sampled_from(list(SPACES.values()))
seeds = st.integers(0, 2**32 - 1)
LISTS = ("encoder_ffn_dims", "encoder_heads", "decoder_ffn_dims", "decoder_self_heads", "decoder_cross_heads", "decoder_cross_spans")


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any valid architecture, in a ready-made space or not."""
    width = st.integers(1, 10**6)
    encoder, decoder = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    spans = st.sampled_from([span for span, layers in SPAN_LAYERS.items() if layers <= encoder])

    def stack(values: st.SearchStrategy[int], layers: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(values, min_size=layers, max_size=layers)))

    return Architecture(
        draw(width),
        draw(width),
        *(stack(width, encoder) for _ in range(2)),
        *(stack(width, decoder) for _ in range(3)),
        stack(spans, decoder),
    )


@pytest.fixture
def arch() -> Architecture:
    return HAT_WMT.sample(1, np.random.default_rng(3), decoder_layers=3)[0]


def message(error: pytest.ExceptionInfo[ValueError]) -> str:
    text = str(error.value)
    assert text.strip()
    assert "\n" not in text
    return text


# --- text forms ---------------------------------------------------------------------------------------------------


@quick
@given(architectures())
def test_text_forms_round_trip(arch: Architecture) -> None:
    assert Architecture.from_hat_yaml(arch.to_hat_yaml()) == arch
    assert Architecture.from_prompt_lines(arch.to_prompt_lines()) == arch
    assert Architecture.from_prompt_lines("\n".join(reversed(arch.to_prompt_lines()))) == arch


@settings(quick, max_examples=300)
@given(st.text() | st.text(alphabet='!&*?:-[]{}<>|"#, \n0b_inftrue', max_size=40))
def test_no_text_does_worse_than_a_one_line_value_error(text: str) -> None:
    for read in (Architecture.from_hat_yaml, Architecture.from_prompt_lines):
        with pytest.raises(ValueError, match=r"\S") as error:
            read(text)
        message(error)


BAD_LINES = [
    # line to put in, what the message must name
    ("decoder-ffn-embed-dim-all-subtransformer: [1024, 1024]", ["decoder-ffn-embed-dim-all-subtransformer", "2", "3"]),
    ("decoder-layer-num-subtransformer: 4", ["decoder-layer-num-subtransformer", "4", "3"]),
    ("decoder-layer-num-subtransformer: true", ["decoder-layer-num-subtransformer", "integer"]),
    ("decoder-layer-num-subtransformer: 0", ["decoder-layer-num-subtransformer", "positive"]),
    ("encoder-embed-dim-subtransformer: 512.0", ["encoder_embed_dim", "integer", "512.0"]),
    ("encoder-embed-dim-subtransformer: true", ["encoder_embed_dim", "integer", "True"]),
    ("encoder-embed-dim-subtransformer: -512", ["encoder_embed_dim", "positive"]),
    ("encoder-embed-dim-subtransformer: [512]", ["encoder_embed_dim", "integer"]),
    ("encoder-ffn-embed-dim-all-subtransformer: 1024", ["encoder_ffn_dims", "per layer"]),
    ('encoder-ffn-embed-dim-all-subtransformer: "wide"', ["encoder_ffn_dims", "per layer"]),
    ("encoder-ffn-embed-dim-all-subtransformer: []", ["encoder-ffn-embed-dim-all-subtransformer", "0", "6"]),
    ("encoder-ffn-embed-dim-all-subtransformer: [1, 1, 1, 1, 1, 1.5]", ["encoder_ffn_dims", "1.5"]),
    ("decoder-arbitrary-ende-attn-all-subtransformer: [3, 1, 1]", ["decoder_cross_spans", "3", "-1, 1, 2"]),
    ("decoder-arbitrary-ende-attn-all-subtransformer: [0, 1, 1]", ["decoder_cross_spans", "0", "-1, 1, 2"]),
]


@pytest.mark.parametrize(("line", "named"), BAD_LINES)
def test_a_bad_value_is_named(arch: Architecture, line: str, named: list[str]) -> None:
    lines = [line if old.split(":")[0] == line.split(":")[0] else old for old in arch.to_prompt_lines()]
    for read in (Architecture.from_hat_yaml, Architecture.from_prompt_lines):
        with pytest.raises(ValueError, match=r"\S") as error:
            read("\n".join(lines))
        assert all(word in message(error) for word in named)


def test_missing_unknown_repeated_and_malformed_keys_are_named(arch: Architecture) -> None:
    lines = arch.to_prompt_lines()
    for read in (Architecture.from_hat_yaml, Architecture.from_prompt_lines):
        with pytest.raises(ValueError, match="missing encoder-embed-dim-subtransformer; allowed are exactly") as error:
            read("\n".join(lines[1:]))
        message(error)
        with pytest.raises(ValueError, match="unknown decoder-colour; allowed are exactly") as error:
            read("\n".join([*lines, "decoder-colour: 1"]))
        message(error)
        with pytest.raises(ValueError, match=r"decoder-layer-num-subtransformer'? is given twice") as error:
            read("\n".join([*lines, "decoder-layer-num-subtransformer: 3"]))
        message(error)
    with pytest.raises(ValueError, match="expected a line 'name: value', got 'hello'"):
        Architecture.from_prompt_lines([*lines, "hello"])
    with pytest.raises(ValueError, match="encoder-embed-dim-subtransformer: expected an integer or a list"):
        Architecture.from_prompt_lines(["encoder-embed-dim-subtransformer: __import__('os')", *lines[1:]])


@pytest.mark.parametrize("text", ["", "just words", "- 1\n- 2", "a: [1", "\t", "!!int ''", "!!bool maybe", "!!timestamp x"])
def test_text_that_is_no_yaml_mapping_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="YAML") as error:
        Architecture.from_hat_yaml(text)
    message(error)


# --- architectures ------------------------------------------------------------------------------------------------


def test_equal_phenotypes_are_equal_objects(arch: Architecture) -> None:
    values = {name: getattr(arch, name) for name in arch.__slots__}
    lists_of_numpy = {name: list(np.array(v)) if isinstance(v, tuple) else np.int64(v) for name, v in values.items()}
    same = Architecture(**lists_of_numpy)
    assert same == arch
    assert hash(same) == hash(arch)
    assert all(type(v) is int for name in LISTS for v in getattr(same, name))
    assert len({arch, same, replace(arch, encoder_embed_dim=1152 - arch.encoder_embed_dim)}) == 2


def test_stacks_of_unequal_or_no_layers_are_refused(arch: Architecture) -> None:
    with pytest.raises(ValueError, match=r"decoder lists need one entry per layer.*decoder_self_heads 2") as error:
        replace(arch, decoder_self_heads=(8, 8))
    message(error)
    with pytest.raises(ValueError, match="encoder lists need one entry per layer and at least one layer"):
        replace(arch, encoder_ffn_dims=(), encoder_heads=())
    for unordered in ({512, 1024, 2048}, {512: 1, 1024: 1, 2048: 1}):
        with pytest.raises(ValueError, match="decoder_ffn_dims: expected one integer per layer, got"):
            replace(arch, decoder_ffn_dims=unordered)


def test_a_span_beyond_the_encoder_is_refused(arch: Architecture) -> None:
    with pytest.raises(ValueError, match=r"decoder_cross_spans.*2.*encoder") as error:
        replace(arch, encoder_ffn_dims=(1024,) * 2, encoder_heads=(8,) * 2, decoder_cross_spans=(2, -1, 1))
    message(error)


# --- spaces -------------------------------------------------------------------------------------------------------


@quick
@given(spaces, seeds)
def test_what_is_drawn_is_of_the_space_and_the_same_each_time(space: SearchSpace, seed: int) -> None:
    archs = space.sample(4, np.random.default_rng(seed))
    assert archs == space.sample(4, np.random.default_rng(seed))
    for arch in (*archs, space.smallest(), space.largest()):
        assert arch in space
        space.validate(arch)


def test_sampling_draws_every_gene_uniformly() -> None:
    """Chi-square over the values of the choices made once and of the first layer's."""
    archs = HAT_WMT.sample(3000, np.random.default_rng(1))
    for name in ("encoder_embed_dim", "decoder_embed_dim", "decoder_layers", *LISTS):
        values = [getattr(arch, name) for arch in archs]
        drawn = [v[0] if isinstance(v, tuple) else v for v in values]
        counts = [drawn.count(allowed) for allowed in getattr(HAT_WMT, name)]
        assert sum(counts) == 3000
        assert chisquare(counts).pvalue > 0.001, name


def test_sampling_at_one_depth(rng: np.random.Generator) -> None:
    assert {arch.decoder_layers for arch in HAT_WMT.sample(50, rng, decoder_layers=2)} == {2}
    with pytest.raises(ValueError, match="decoder_layers is 9; allowed in HAT_WMT are 6, 5, 4, 3, 2, 1") as error:
        HAT_WMT.sample(1, rng, decoder_layers=9)
    message(error)
    assert HAT_WMT.sample(0, rng) == []


def test_an_architecture_outside_a_space_is_named(arch: Architecture, rng: np.random.Generator) -> None:
    deep = replace(arch, **{name: getattr(arch, name)[:1] * 7 for name in LISTS if name.startswith("decoder")})
    wide = replace(arch, encoder_ffn_dims=(*arch.encoder_ffn_dims[:5], 4096))
    cases = [
        (deep, "not in search space HAT_WMT: decoder_layers is 7; allowed are 6, 5, 4, 3, 2, 1"),
        (wide, r"not in search space HAT_WMT: encoder_ffn_dims\[5\] is 4096; allowed are 3072, 2048, 1024"),
        (replace(arch, decoder_embed_dim=768), "decoder_embed_dim is 768; allowed are 640, 512"),
    ]
    for outside, text in cases:
        assert outside not in HAT_WMT
        for read in (HAT_WMT.validate, HAT_WMT.row, HAT_WMT.lines):
            with pytest.raises(ValueError, match=text) as error:
                read(outside)
            message(error)
    assert "an architecture" not in HAT_WMT


@pytest.mark.parametrize(
    ("field", "values", "text"),
    [
        ("encoder_heads", (3,), "encoder_heads: every number of heads must divide qkv_dim=64"),
        ("decoder_cross_heads", (4, 5), "decoder_cross_heads: every number of heads must divide"),
        ("decoder_cross_spans", (3,), "decoder_cross_spans: 3 is not allowed; allowed are -1, 1, 2"),
        ("encoder_layers", (2,), "decoder_cross_spans: .* reads more encoder layers than 2"),
        ("decoder_layers", (1, 1), "decoder_layers: expected distinct"),
        ("decoder_layers", (), "decoder_layers: expected distinct"),
        ("decoder_layers", 3, "decoder_layers: expected"),
        ("decoder_ffn_dims", (64, True), "decoder_ffn_dims: expected an integer"),
        ("decoder_ffn_dims", (64, 1.5), "decoder_ffn_dims: expected an integer"),
        ("encoder_embed_dim", (0,), "encoder_embed_dim: expected a positive integer"),
        ("qkv_dim", "wide", "qkv_dim: expected an integer"),
        ("qkv_dim", 0, "qkv_dim: expected a positive integer"),
    ],
)
def test_a_bad_space_is_refused(field: str, values: object, text: str) -> None:
    with pytest.raises(ValueError, match=text) as error:
        replace(TINY, **{field: values})
    message(error)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_balanced_samples_are_balanced_from_every_beginning(space: SearchSpace) -> None:
    archs = space.sample_balanced(65, np.random.default_rng(4))
    assert archs == space.sample_balanced(90, np.random.default_rng(4))[:65]
    assert len(set(archs)) == 65
    assert all(arch in space for arch in archs)
    for n in (13, 65):
        counts = np.unique([arch.decoder_layers for arch in archs[:n]], return_counts=True)[1]
        assert np.ptp(counts) <= 1


def test_a_space_that_is_too_small_to_sample_from_says_so(rng: np.random.Generator) -> None:
    small = replace(TINY, name="two", encoder_embed_dim=(64,), decoder_embed_dim=(64, 48), decoder_layers=(1,), encoder_ffn_dims=(64,))
    small = replace(small, encoder_heads=(4,), decoder_ffn_dims=(64,), decoder_self_heads=(4,), decoder_cross_heads=(4,))
    small = replace(small, decoder_cross_spans=(1,))
    assert len(small.sample_balanced(2, rng)) == 2
    with pytest.raises(ValueError, match=r"two holds 2 architectures with decoder_layers=1, too few for 3"):
        small.sample_balanced(3, rng)
