"""FVD of a split: which videos are compared, and what is refused. The network is replaced by a mean."""

import numpy as np
import pytest

from cvae_jax.data.clips import Recording, no_labels
from cvae_jax.evaluation import video_distance
from cvae_jax.evaluation.video_distance import VideoDistance, check
from cvae_jax.perceptual import fvd
from cvae_jax.runtime.errors import UserError


class Means:
    """Features (6,): the mean frame's corners and the number of frames looked at."""

    def __init__(self, frames):
        self.frames, self.seen = frames, []

    def of(self, video):
        self.seen.append(video)
        return np.append(video[: self.frames, :2, 0].mean(0).ravel()[:5], self.frames).astype(np.float32)


@pytest.fixture
def clips(monkeypatch, tmp_path):
    monkeypatch.setattr(video_distance.fvd, "Features", Means)
    monkeypatch.setattr(fvd, "user_cache_folder", lambda: tmp_path)
    rng = np.random.default_rng(0)
    lengths = (12, 11, 14, 12, 10)
    videos = [rng.integers(256, size=(length, 8, 8, 3), dtype=np.uint8) for length in lengths]
    return [Recording("s", f"r{i}", 0, video, no_labels(len(video))) for i, video in enumerate(videos)]


def test_whole_videos_of_the_first_clips_are_compared(clips):
    distance = VideoDistance(clips, 4, n_past=2)
    network = distance._features
    assert network.frames == 11  # as long as the shortest of the four
    predicted = [255 - clip.frames[2:] for clip in clips]
    for number, frames in enumerate(predicted):
        distance.add(number, frames)
    assert len(network.seen) == 4 + 4  # the fifth clip is ignored
    for clip, seen, frames in zip(clips, network.seen[4:], predicted, strict=False):
        np.testing.assert_array_equal(seen, np.concatenate([clip.frames[:2], frames]))
    true, own = (
        np.stack([Means(11).of(video) for video in part]) for part in (network.seen[:4], network.seen[4:])
    )
    fields = distance.fields(seed=0)
    assert fields["fvd_4"] == pytest.approx(fvd.frechet_distance(true, own))
    low, high = fields["fvd_4_ci95"]
    assert low < fields["fvd_4"] < high
    again = VideoDistance(clips, 4, n_past=2)
    assert not again._features.seen  # the features of the true clips were kept


def test_true_videos_are_at_distance_zero_and_broken_features_have_none(clips):
    distance = VideoDistance(clips, 3, n_past=1)
    for number, clip in enumerate(clips):
        distance.add(number, clip.frames[1:])
    assert distance.fields(0)["fvd_3"] == pytest.approx(0, abs=1e-6)
    distance._predicted[1] = np.full(6, np.nan, np.float32)
    assert distance.fields(0) == {"fvd_3": None, "fvd_3_ci95": None}


def test_what_cannot_be_measured_is_refused_with_the_field(clips):
    assert check(clips, 0, "test") == "not measured: config.eval.fvd_clips is 0"
    assert "of 11 frames" in check(clips, 4, "test") and "first 4 clips" in check(clips, 4, "test")
    with pytest.raises(UserError, match="config.eval.fvd_clips is 6, but the split test has 5 clips"):
        check(clips, 6, "test")
    short = [Recording("s", "a", 0, clips[0].frames[:8], no_labels(8)), *clips]
    with pytest.raises(UserError, match="shortest of these clips has 8 frames and FVD needs 9"):
        check(short, 3, "test")
