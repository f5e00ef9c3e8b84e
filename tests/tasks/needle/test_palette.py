import itertools

import numpy as np
import pytest

from apr_plugin.tasks.needle.palette import (
    ALL_GLYPHS,
    BACKGROUNDS,
    CHIME_PARTIALS_HZ,
    GLYPH_COLOURS,
    GLYPH_SHAPES,
    LOOKALIKES,
    PATCH,
    PATTERNS,
    PITCHES,
    Glyph,
    background_rgb,
    chime,
    draw_frame,
    glyph_mask,
    patch_mask,
    pattern_mask,
    tone,
)

SIZES = [(112, 112), (224, 224), (320, 180), (120, 260)]


def distance(a, b) -> float:
    return float(np.linalg.norm(np.subtract(a, b)))


@pytest.mark.parametrize(("colours", "least"), [(BACKGROUNDS, 80), (LOOKALIKES, 50), (GLYPH_COLOURS, 100)])
def test_colours_are_told_apart(colours, least):
    assert min(distance(a, b) for a, b in itertools.combinations(colours.values(), 2)) > least


def test_glyph_colours_stand_out_from_the_patch():
    assert min(distance(colour, PATCH) for colour in GLYPH_COLOURS.values()) > 150


def test_names_are_unambiguous():
    assert not set(BACKGROUNDS) & set(LOOKALIKES)
    assert len(BACKGROUNDS) >= 8 and len(LOOKALIKES) >= 8 and len(PATTERNS) >= 6
    assert len({glyph.name for glyph in ALL_GLYPHS}) == 36
    assert [Glyph.parse(glyph.name) for glyph in ALL_GLYPHS] == list(ALL_GLYPHS)


@pytest.mark.parametrize("name", ["", "red", "red blob", "teal square", "red  square", "square red"])
def test_parse_refuses_what_is_no_glyph(name):
    with pytest.raises(ValueError, match="not a glyph"):
        Glyph.parse(name)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown background 'mauve'"):
        background_rgb("mauve")
    with pytest.raises(ValueError, match="unknown pattern"):
        pattern_mask("tartan", (112, 112))
    with pytest.raises(ValueError, match="unknown shape"):
        glyph_mask("star", (112, 112))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("glyph", [None, Glyph("black", "square")])
def test_background_dominates_by_area(size, pattern, glyph):
    frame = draw_frame("blue", pattern, glyph, size)
    assert frame.shape == (size[1], size[0], 3) and frame.dtype == np.uint8
    colours, counts = np.unique(frame.reshape(-1, 3), axis=0, return_counts=True)
    assert tuple(colours[counts.argmax()]) == BACKGROUNDS["blue"]


@pytest.mark.parametrize("size", SIZES)
def test_patterns_differ_outside_the_patch(size):
    outside = ~patch_mask(size)
    for a, b in itertools.combinations(PATTERNS, 2):
        differ = (pattern_mask(a, size) != pattern_mask(b, size))[outside]
        assert differ.mean() > 0.1, (a, b)
    assert all(pattern_mask(pattern, size).mean() < 0.4 for pattern in PATTERNS)


@pytest.mark.parametrize("size", SIZES)
def test_shapes_differ_and_stay_inside_the_patch(size):
    for shape in GLYPH_SHAPES:
        assert not (glyph_mask(shape, size) & ~patch_mask(size)).any()
    for a, b in itertools.combinations(GLYPH_SHAPES, 2):
        ours, theirs = glyph_mask(a, size), glyph_mask(b, size)
        assert (ours & theirs).sum() / (ours | theirs).sum() < 0.85, (a, b)


def test_masks_cannot_be_changed():
    with pytest.raises(ValueError):
        pattern_mask("dotted", (112, 112))[0, 0] = True


def spectrum(samples, rate):
    return np.fft.rfftfreq(len(samples), 1 / rate), np.abs(np.fft.rfft(samples))


@pytest.mark.parametrize("pitch", PITCHES)
def test_tone_has_its_pitch_and_soft_edges(pitch):
    samples = tone(pitch, 1.2, 16_000)
    hertz, power = spectrum(samples, 16_000)
    assert abs(hertz[power.argmax()] - PITCHES[pitch]) < 2
    assert samples.dtype == np.float32 and samples.shape == (19_200,)
    assert samples[0] == samples[-1] == 0 and np.abs(samples).max() <= 0.4


def test_chime_is_no_tone():
    samples = chime(16_000)
    hertz, power = spectrum(samples, 16_000)
    peaks = sorted(hertz[np.argsort(power)[-2:]])
    assert np.allclose(peaks, CHIME_PARTIALS_HZ, atol=4)
    assert samples.shape == (8_000,) and np.abs(samples).max() < 0.6
    for pitch in PITCHES.values():
        assert power[np.abs(hertz - pitch).argmin()] < 0.02 * power.max()
