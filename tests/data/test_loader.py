"""Training batches: which clips, in which order, padded how."""

import dataclasses
import itertools

import numpy as np
import pytest

from cvae_jax.data.clips import Recording, windows
from cvae_jax.data.loader import TrainLoader
from cvae_jax.runtime.errors import UserError

SIZE = (2, 3)


def recording(number, length):
    """Every pixel of frame t says (recording, t); its label says (recording, t) too, plus 100."""
    frames = np.empty((length, *SIZE, 3), np.uint8)
    frames[..., 0], frames[..., 1:] = number, np.arange(length)[:, None, None, None]
    return Recording("scene", f"r{number}", 0, frames, frames + 100)


def loader(lengths=(11, 3, 8, 4), clip_length=4, stride=4, batch_size=3, seed=5, shuffle=True, **fields):
    recordings = [recording(i, length) for i, length in enumerate(lengths)]
    return TrainLoader(recordings, clip_length, stride, batch_size, seed, shuffle, **fields)


def clips_of(batches, frame_step=1):
    """(recording, first frame) of every real clip, in order; checks that each is in one piece."""
    found = []
    for batch in batches:
        for frames, labels, real in zip(batch["frames"], batch["labels"], batch["mask"], strict=True):
            assert (frames == frames[:, :1, :1]).all()
            assert len(set(frames[:, 0, 0, 0])) == 1  # one recording
            assert (np.diff(frames[:, 0, 0, 1].astype(int)) == frame_step).all()
            np.testing.assert_array_equal(labels, frames + 100)
            if real:
                found.append(tuple(frames[0, 0, 0, :2].tolist()))
    return found


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("stride", "expected"),
    [
        (4, [(0, 0), (0, 4), (2, 0), (2, 4), (3, 0)]),
        (3, [(0, 0), (0, 3), (0, 6), (2, 0), (2, 3), (3, 0)]),
        (1, [(0, s) for s in range(8)] + [(2, s) for s in range(5)] + [(3, 0)]),
        (20, [(0, 0), (2, 0), (3, 0)]),
    ],
)
def test_windows_stay_within_a_recording(stride, expected):
    assert list(map(tuple, windows([11, 3, 8, 4], 4, stride))) == expected
    assert clips_of(loader(stride=stride, shuffle=False).batches(epoch=3)) == expected
    shuffled = clips_of(loader(stride=stride).batches(epoch=3))
    assert sorted(shuffled) == expected  # every clip exactly once


def test_a_clip_of_every_third_frame():
    """Four frames, three apart, span ten: the recordings of eight and four frames are too short."""
    made = loader(stride=1, shuffle=False, frame_step=3)
    assert clips_of(made.batches(epoch=0), frame_step=3) == [(0, 0), (0, 1)]
    assert next(made.batches(epoch=0))["frames"].shape == (3, 4, *SIZE, 3)
    apart = loader(lengths=(21, 10, 9), stride=None, shuffle=False, frame_step=3)
    assert clips_of(apart.batches(epoch=0), frame_step=3) == [(0, 0), (0, 10), (1, 0)]
    with pytest.raises(UserError, match="config.clip_length=4, config.data.frame_step=4 frames apart"):
        loader(frame_step=4)


def test_windows_of_nothing_keep_their_shape():
    assert windows([3], 4, 1).shape == windows([], 4, 1).shape == (0, 2)


@pytest.mark.parametrize(("batch_size", "masks"), [(3, [3, 2]), (5, [5]), (7, [5]), (1, [1] * 5)])
def test_the_last_batch_is_filled_up_and_masked(batch_size, masks):
    made = loader(batch_size=batch_size)
    batches = list(made.batches(epoch=0))
    assert made.num_batches == len(batches) == len(masks)
    for batch, real in zip(batches, masks, strict=True):
        assert batch["frames"].shape == batch["labels"].shape == (batch_size, 4, *SIZE, 3)
        assert batch["frames"].dtype == batch["labels"].dtype == np.uint8
        assert batch["mask"].dtype == np.float32 and batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["mask"], [1] * real + [0] * (batch_size - real))
        np.testing.assert_array_equal(batch["index"], np.arange(batch_size))
        assert (batch["frames"][real:] == batch["frames"][0]).all()


def test_order_is_a_function_of_seed_and_epoch():
    order = lambda epoch, **fields: clips_of(loader(stride=1, **fields).batches(epoch))  # noqa: E731
    assert order(2) == order(2)
    np.random.seed(0)  # the global state of NumPy does not matter
    made = loader(stride=1)
    list(made.batches(epoch=7))  # nor what was read before
    assert clips_of(made.batches(epoch=2)) == order(2)
    assert order(2) != order(3) and order(2) != order(2, seed=6)
    assert order(2, batch_size=5) == order(2)  # nor the size of the batches
    assert order(2, shuffle=False) == order(3, shuffle=False, seed=6) == sorted(order(2))


def test_seed_and_epoch_do_not_alias():
    order = lambda seed, epoch: clips_of(loader(stride=1, seed=seed).batches(epoch))  # noqa: E731
    assert order(1, 2) != order(2, 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_resumed_epoch_is_the_tail_of_the_whole(shuffle):
    made = loader(stride=1, shuffle=shuffle)
    whole = list(made.batches(epoch=4))
    assert len(whole) == made.num_batches == 5 and whole[-1]["mask"].sum() == 2
    for start in range(6):
        assert same(list(made.batches(epoch=4, start=start)), whole[start:])
    assert same(list(made.batches(epoch=5, start=2)), whole[2:]) != shuffle


def test_recordings_that_are_all_too_short():
    sentence = (
        r"^The longest training recording has 8 frames, too few for one clip of "
        r"config.clip_length=9, config.data.frame_step=1 frames apart; lower one of them or bring "
        r"longer recordings.$"
    )
    with pytest.raises(UserError, match=sentence):
        loader(lengths=(3, 8), clip_length=9)
    loader(lengths=(3, 9), clip_length=9)
    with pytest.raises(UserError, match="has 0 frames"):
        loader(lengths=())


def test_a_batch_is_filled_up_for_the_devices():
    made = loader(batch_size=3, shuffle=False)
    (batch,) = itertools.islice(made.batches(0), 1)
    (padded,) = itertools.islice(dataclasses.replace(made, padded_size=8).batches(0), 1)
    np.testing.assert_array_equal(padded["mask"], [1, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(padded["index"], np.arange(8))
    assert clips_of([padded]) == clips_of([batch])
    assert same([{k: v[:3] for k, v in padded.items()}], [batch])
    for copy in padded["frames"][3:]:
        np.testing.assert_array_equal(copy, batch["frames"][0])
    assert {k: v.dtype for k, v in padded.items()} == {k: v.dtype for k, v in batch.items()}


@pytest.mark.parametrize("reference", ["first", "random"])
def test_the_shares_of_processes_are_the_whole_batch(reference):
    """Also of the short last batch, of which some processes get no real clip."""
    whole = dataclasses.replace(loader(stride=1, batch_size=5, reference=reference), padded_size=6)
    shares = [
        list(dataclasses.replace(whole, share=slice(2 * number, 2 * number + 2)).batches(3))
        for number in range(3)
    ]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert same(joined, list(whole.batches(3)))
    assert any(part["mask"].sum() == 0 for part in shares[2])


def test_a_recording_refuses_what_is_no_video():
    frames = np.zeros((4, *SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="frames must be uint8"):
        Recording("s", "n", 0, frames.astype(np.float32), frames)
    with pytest.raises(ValueError, match="labels must be uint8"):
        Recording("s", "n", 0, frames, frames[..., :1])
    with pytest.raises(ValueError, match="differ in shape"):
        Recording("s", "n", 0, frames, frames[:3])


def test_an_epoch_of_so_many_clips_takes_others_each_time():
    whole = loader((40,), clip_length=4, stride=1, batch_size=4)
    part = dataclasses.replace(whole, clips_per_epoch=6)
    assert part.num_batches == 2
    for epoch in (0, 1):
        taken = [batch for batch in part.batches(epoch)]
        assert [int(batch["mask"].sum()) for batch in taken] == [4, 2]
        first = next(whole.batches(epoch))
        np.testing.assert_array_equal(taken[0]["frames"], first["frames"])
    a, b = (next(part.batches(epoch))["frames"] for epoch in (0, 1))
    assert not np.array_equal(a, b)
    assert dataclasses.replace(whole, clips_per_epoch=99).num_batches == whole.num_batches
    with pytest.raises(UserError, match="clips_per_epoch needs config.data.shuffle=True"):
        dataclasses.replace(part, shuffle=False)


@pytest.mark.parametrize("read_threads", [1, 2, 7])
def test_batches_are_the_same_for_any_number_of_read_threads(read_threads):
    alone = loader(stride=1)
    threaded = dataclasses.replace(alone, read_threads=read_threads)
    for start in (0, 3, alone.num_batches):
        assert same(list(threaded.batches(4, start)), list(alone.batches(4, start)))
    next(threaded.batches(4))  # one that is given up half-way leaves the next as it was
    assert same(list(threaded.batches(5)), list(alone.batches(5)))


def test_the_order_is_the_one_interrupted_runs_and_published_numbers_had():
    """The permutation of NumPy's generator of (seed, stream, epoch); a change here breaks every resume."""
    made = loader(stride=1)
    order = np.random.default_rng([5, 0x5487, 9]).permutation(len(made.windows))
    clips = [(int(r), int(s)) for r, s in made.windows[order]]
    assert clips_of(made.batches(9)) == clips
    assert clips[:6] == [(2, 1), (0, 2), (0, 4), (0, 6), (0, 7), (0, 5)]


def test_every_epoch_takes_each_clip_once_and_in_an_order_of_its_own():
    made = loader((40,), stride=1, batch_size=4)
    orders = [clips_of(made.batches(epoch)) for epoch in range(8)]
    assert all(sorted(order) == [(0, start) for start in range(37)] for order in orders)
    assert len(set(map(tuple, orders))) == 8


@pytest.mark.parametrize("size", [0, 3])
def test_labels_may_be_vectors_or_absent(size):
    video = recording(0, 9)
    labels = np.arange(9 * size, dtype=np.float32).reshape(9, size)
    made = TrainLoader([dataclasses.replace(video, labels=labels)], 4, 2, 2, 0, False, frame_step=2)
    (batch,) = made.batches(0)
    assert batch["labels"].shape == (2, 4, size) and batch["labels"].dtype == np.float32
    np.testing.assert_array_equal(batch["labels"], np.stack([labels[0:7:2], labels[2:9:2]]))


def test_what_is_done_to_a_batch_reaches_neither_recordings_nor_other_batches():
    made = loader(batch_size=1, read_threads=1)
    for batch in made.batches(0):
        batch["frames"][:] = batch["mask"][:] = 0
        del batch["labels"]
    assert same(list(made.batches(0)), list(loader(batch_size=1).batches(0)))


# Context frames from elsewhere


def references(made, epoch):
    """(recording, frame) of the first frame of every clip, and the clips' other frames."""
    firsts, others = [], []
    for batch in made.batches(epoch):
        np.testing.assert_array_equal(batch["labels"], batch["frames"] + 100)
        for frames, real in zip(batch["frames"][:, :, 0, 0, :2].astype(int).tolist(), batch["mask"]):
            if real:
                firsts.append([tuple(frame) for frame in frames[: made.n_past]])
                others.append([tuple(frame) for frame in frames[made.n_past :]])
    return firsts, others


def test_a_random_reference_replaces_the_context_frames_alone():
    plain, drawn = (loader(stride=1, reference=kind) for kind in ("first", "random"))
    (first, others), (reference, same_others) = references(plain, 2), references(drawn, 2)
    assert others == same_others  # the frames to predict, in the same order
    assert first != reference
    places = {place for clip in reference for place in clip}
    assert {r for r, _ in places} > {0}  # any recording of the scene
    assert all(frame < (11, 3, 8, 4)[r] for r, frame in places)
    assert references(drawn, 2) == (reference, same_others)  # a function of the epoch
    assert references(drawn, 3)[0] != reference
    later = list(drawn.batches(2))[1:]
    assert same(later, list(drawn.batches(2, start=1)))


def test_a_random_reference_has_n_past_successive_frames():
    made = loader(stride=1, reference="random", n_past=2, frame_step=2, lengths=(11, 9))
    for clip, _ in zip(*references(made, 0), strict=True):
        (one, first), (other, second) = clip
        assert one == other and second == first + 2


def test_a_random_reference_is_of_the_same_scene():
    made = loader(stride=1, reference="random")
    scenes = [dataclasses.replace(r, scene=f"scene{i % 2}") for i, r in enumerate(made.recordings)]
    made = dataclasses.replace(made, recordings=scenes)
    for (context,), others in zip(*references(made, 0), strict=True):
        assert {context[0] % 2} == {r % 2 for r, _ in others}


def test_an_epoch_may_repeat_its_clips():
    once, thrice = loader(stride=1), loader(stride=1, repeats=3)
    assert thrice.num_clips == 3 * once.num_clips
    clips = clips_of(thrice.batches(epoch=1))
    count = once.num_clips
    parts = [clips[k * count : (k + 1) * count] for k in range(3)]
    assert parts[0] == clips_of(once.batches(epoch=1)) != parts[1]
    assert sorted(parts[0]) == sorted(parts[1]) == sorted(parts[2])
    assert loader(stride=1, repeats=3, clips_per_epoch=20).num_clips == 20


def test_an_unknown_reference_is_refused():
    with pytest.raises(UserError, match="config.data.reference is 'last'; choose one of first, random"):
        loader(reference="last")
