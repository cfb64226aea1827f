"""The arithmetic below the methods: random words, masks, trims, sign elections, spherical coefficients."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import RecipeError
from eutectic.kernels import fused
from eutectic.kernels.random import (
    COUNTERS_A_BLOCK,
    ENTRIES_A_BLOCK,
    Rng,
    bound_of,
    drop,
    keep_threshold,
    random_words,
    rescale,
    uint32_key,
)
from eutectic.kernels.signs import disjoint_sum, elect_sign
from eutectic.kernels.sphere import slerp_coefficients
from eutectic.kernels.sums import divisor, one_a_model, weighted_sum
from eutectic.kernels.trim import keep_largest, kept_count, match_l1

WORD = 0xFFFFFFFF
MILLION = 10**6


def philox(counter, key):
    """Philox4x32-7 as Salmon et al. 2011 write it, one counter at a time."""
    x, (k0, k1) = list(counter), key
    for _ in range(7):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(right >> 32) ^ x[1] ^ k0, right & WORD, (left >> 32) ^ x[3] ^ k1, left & WORD]
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return x


def entry_word(index, key):
    """The documented layout: byte p of a word is in a counter whose two top bits are p."""
    block, within = divmod(index, ENTRIES_A_BLOCK)
    number, found = block * COUNTERS_A_BLOCK + within % 128 // 8, 0
    for place in range(4):
        words = philox((number & WORD, (number >> 32) | place << 30, key[2], key[3]), key[:2])
        low, high = words[:2] if within < 128 else words[2:]
        found = found << 8 | (low | high << 32) >> 8 * (index % 8) & 0xFF
    return found


# Philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, (0, 0), "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ([WORD] * 4, (WORD, WORD), "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_the_oracle_gives_the_published_words(counter, key, words):
    assert " ".join(f"{word:08x}" for word in philox(counter, key)) == words


def test_counter_zero_of_key_zero_gives_the_published_words():
    highest = [word >> 24 for word in random_words(256, (0, 0, 0, 0)).tolist()]
    words = [bytes(highest[at : at + 4][::-1]).hex() for at in (0, 4, 128, 132)]
    assert words == ["5f6fb709", "0d893f64", "4f121f81", "4f730a48"]


@given(key=st.tuples(*[st.integers(0, WORD)] * 4), index=st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_words_follow_the_documented_layout(key, index):
    assert random_words(index + 1, key)[index] == entry_word(index, key)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 255, 256, 257, 1000])
def test_fewer_words_are_a_prefix_of_more(count):
    key = Rng(3, "name", ("a",)).key(0)
    assert torch.equal(random_words(count, key), random_words(2000, key)[:count])


def test_a_key_is_part_of_the_format():
    """blake2b of length-prefixed (seed, "mask", label, tensor): a change here changes every seeded merge."""
    text = b"\1\0\0\x007" + b"\4\0\0\0mask" + b"\x09\0\0\0org/model" + b"\x11\0\0\0model.norm.weight"
    key = Rng(7, "model.norm.weight", ("org/model",)).key(0)
    assert key == (0xA5197AA7, 0xD7335120, 0x02BCEE74, 0x1CDBCB6A)
    assert np.array(key, "<u4").tobytes() == hashlib.blake2b(text, digest_size=16).digest()
    assert Rng(7, "t").key(2) == Rng(7, "t", ("0", "1", "2")).key(2)


def test_key_parts_do_not_run_into_each_other():
    keys = {Rng(1, "ab", ("c",)).key(0), Rng(1, "b", ("ca",)).key(0), Rng(11, "b", ("c",)).key(0)}
    assert len(keys) == 3


def test_compiled_kernels_get_the_same_key():
    key = (1, 2, 3, WORD)
    assert uint32_key(key).tolist() == list(key)
    assert uint32_key(key).dtype == np.uint32


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_each_byte_of_a_million_words_is_uniform(shift):
    """χ² of 256 bins: mean 255, standard deviation 22.6; six of them are the bound."""
    words = random_words(MILLION, Rng(0, "tensor", ("model",)).key(0)).numpy()
    counts = np.bincount((words >> shift) & 255, minlength=256)
    statistic = float(((counts - MILLION / 256) ** 2).sum() / (MILLION / 256))
    assert abs(statistic - 255) < 6 * math.sqrt(2 * 255)


@pytest.mark.parametrize(
    "other", [Rng(0, "tensor 2", ("model",)), Rng(0, "tensor", ("model 2",)), Rng(1, "tensor", ("model",))]
)
def test_masks_of_other_keys_are_independent(other):
    """The four combinations of two masks at density ½ each have a quarter, within six standard deviations (433)."""
    first = random_words(MILLION, Rng(0, "tensor", ("model",)).key(0)) < keep_threshold(0.5)
    second = random_words(MILLION, other.key(0)) < keep_threshold(0.5)
    for a in (first, ~first):
        for b in (second, ~second):
            assert abs(int((a & b).sum()) - MILLION / 4) < 6 * math.sqrt(MILLION * 3 / 16)


@pytest.mark.parametrize("lag", [1, 8, 128, 256])
def test_neighbours_in_a_mask_are_independent(lag):
    words = random_words(MILLION, Rng(0, "tensor", ("model",)).key(0)).numpy() / 2**32 - 0.5
    correlation = float(np.mean(words[lag:] * words[:-lag]) * 12)
    assert abs(correlation) < 6 / math.sqrt(MILLION)


# Drop


def test_thresholds_at_the_ends_keep_all_and_nothing():
    assert keep_threshold(1.0) == 2**32
    assert keep_threshold(0.5) == 2**31


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_drop_keeps_the_share_asked_for(density):
    ones = torch.ones(1, MILLION)
    kept = float(drop(ones, density, Rng(5, "x")).sum())
    assert abs(kept - density * MILLION) < 6 * math.sqrt(MILLION * density * (1 - density))


def test_a_word_equal_to_the_threshold_is_dropped():
    rng, ones = Rng(0, "x"), torch.ones(1, 100)
    word = int(random_words(100, rng.key(0))[50])
    assert drop(ones, word / 2**32, rng)[0, 50] == 0
    assert drop(ones, (word + 1) / 2**32, rng)[0, 50] == 1


def test_drop_takes_a_density_a_model():
    kept = drop(torch.ones(2, 10_000), [1.0, 0.1], Rng(0, "x", ("a", "b"))).sum(1)
    assert kept[0] == 10_000
    assert 800 < kept[1] < 1200


def test_a_mask_depends_on_the_flat_index_and_not_on_the_shape():
    values = torch.arange(1.0, 25).reshape(1, 24)
    flat = drop(values, 0.5, Rng(0, "x"))
    assert torch.equal(drop(values.reshape(1, 4, 1, 6), 0.5, Rng(0, "x")).reshape(1, 24), flat)


def test_a_higher_density_keeps_all_that_a_lower_one_keeps():
    ones = torch.ones(1, 5000)
    low, high = (drop(ones, density, Rng(0, "x")) for density in (0.2, 0.6))
    assert bool((high >= low).all())


def test_division_by_density_is_a_model_each():
    assert torch.equal(rescale(torch.ones(2, 3, 1), [0.5, 0.25])[:, 0, 0], torch.tensor([2.0, 4.0]))


# Trim


@pytest.mark.parametrize(
    ("density", "numel", "kept"),
    [(0.29, 100, 29), (0.2, 4, 1), (0.2, 5, 1), (0.2, 9, 1), (0.2, 10, 2), (1.0, 7, 7), (1e-9, 7, 1), (0.5, 0, 0)],
)
def test_kept_count_is_exact_in_decimals_and_at_least_one(density, numel, kept):
    assert kept_count(density, numel) == kept


@given(
    values=st.lists(st.integers(-3, 3), max_size=60),
    density=st.sampled_from([0.01, 0.1, 0.2, 0.29, 0.5, 0.9, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_exactly_k_stay_and_equals_are_kept_by_index(values, density):
    delta = torch.tensor([values], dtype=torch.float32)
    ranked = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[: kept_count(density, len(values))]
    wanted = [float(v) if i in ranked else 0.0 for i, v in enumerate(values)]
    assert keep_largest(delta, density).tolist() == [wanted]


def test_a_quantised_delta_keeps_no_more_than_asked():
    """A small fine-tune stored in bfloat16 has few distinct magnitudes; "≥ the k-th" would keep 39 % here."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(20_000, generator=generator) * 0.02).bfloat16()
    tuned = (base.float() + torch.randn(20_000, generator=generator) * 1e-4).bfloat16()
    delta = tuned.float() - base.float()
    threshold = delta.abs().sort(descending=True).values[3999]
    assert int((delta.abs() >= threshold).sum()) > 6000
    assert int(keep_largest(delta[None], 0.2).count_nonzero()) == 4000


def test_trim_ranks_each_model_by_its_own_density():
    deltas = torch.tensor([[1.0, -2, 3, -4], [40, 30, 20, 10]])
    assert keep_largest(deltas, [0.25, 0.5]).tolist() == [[0, 0, 0, -4], [40, 30, 0, 0]]


def test_l1_match_restores_the_norm_and_leaves_empty_deltas_alone():
    dense = torch.tensor([[1.0, -2, 3], [1, 1, 1]])
    sparse = torch.tensor([[0.0, 0, 3], [0, 0, 0]])
    assert match_l1(sparse, dense).tolist() == [[0, 0, 6], [0, 0, 0]]


# Sums and signs


def test_weighted_sum_is_accumulated_in_float64():
    tensors = torch.tensor([[1e8], [1.0], [-1e8]])
    assert weighted_sum(tensors, [1.0, 1.0, 1.0]).tolist() == [1.0]
    third = torch.tensor([[1 / 3]])
    assert weighted_sum(third, [0.1]).tolist() == [third.item() * 0.1]


def test_values_must_be_one_or_one_a_model():
    assert one_a_model(2, 3) == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="2 values for 3 models"):
        one_a_model([1, 2], 3)


def test_weights_that_sum_to_zero_cannot_be_normalised():
    assert divisor([1.0, -1.0], normalize=False) == 1.0
    with pytest.raises(RecipeError, match="sum to zero"):
        divisor([1.0, -1.0], normalize=True)
    with pytest.raises(RecipeError, match="sum to infinity"):
        divisor([1e308, 1e308], normalize=True)


def test_a_vote_of_exactly_zero_elects_plus():
    deltas = torch.tensor([[1.0, -1, 0, -3], [-1, 1, 0, 1]])
    assert elect_sign(deltas, [1.0, 1.0]).tolist() == [1, 1, 1, -1]
    merged = disjoint_sum(deltas, elect_sign(deltas, [1.0, 1.0]), [1.0, 1.0])
    assert merged.tolist() == [1, 1, 0, -3]


def test_agreeing_weights_that_cancel_leave_the_sum_undivided():
    deltas = torch.tensor([[2.0], [-3.0]])
    assert disjoint_sum(deltas, elect_sign(deltas, [1.0, -1.0]), [1.0, -1.0]).tolist() == [5.0]


# Spherical coefficients


@pytest.mark.parametrize("angle", [1e-3, 0.1, 1.0, 2.0, 3.1])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_coefficients_are_ratios_of_sines(angle, t):
    wanted = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    assert slerp_coefficients(4.0, 6.0 * math.cos(angle), 9.0, t) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("aa", "ab", "bb"), [(0, 0, 1), (1, 0, 0), (0, 0, 0), (1, 1, 1), (1, -1, 1), (4, -6 * 0.9996, 9), (1, math.inf, 1)]
)
def test_lines_where_the_sphere_has_no_answer(aa, ab, bb):
    assert slerp_coefficients(aa, ab, bb, 0.25) == (0.75, 0.25)


@given(angle=st.floats(0, math.pi), t=st.sampled_from([0.0, 1.0]))
@settings(max_examples=100, deadline=None)
def test_ends_are_exact(angle, t):
    assert slerp_coefficients(1.0, math.cos(angle), 1.0, t) == (1.0 - t, t)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 1e-5, 1 - 1e-9])
def test_compiled_masks_are_those_of_the_words(density):
    """With half a million entries, the highest byte is that of the bound in 2048, and the lower ones decide."""
    key, keep, count = Rng(3, "name", ("a",)).key(0), keep_threshold(density), 1 << 19
    words, mask = np.empty(fused.TILE // 8, np.uint64), np.zeros(count, bool)
    for start in range(0, count, fused.TILE):
        fused.deciding_bytes(start, fused.TILE, uint32_key(key), np.uint64(keep), words)
        mask[start : start + fused.TILE] = words.view(np.uint8) < bound_of(keep)
    assert np.array_equal(mask, (random_words(count, key) < keep).numpy())
