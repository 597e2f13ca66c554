"""The page in headless Chromium: dragged, played and recorded. Needs chromium, chromedriver, selenium."""

import base64
import io
import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT
from PIL import Image

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.clips import to_unit
from cvae_jax.data.datasets import real_clips
from cvae_jax.data.pose import USED_LANDMARKS, landmark_index
from cvae_jax.data.retarget import retarget, stance
from cvae_jax.puppet.step import make_step
from cvae_jax.rollout.programs import make_begin
from cvae_jax.training.checkpoint import restore_for_evaluation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium"),
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromedriver"),
]
ROWS = [landmark_index(name) for name in USED_LANDMARKS]
SIZE = (64, 32)
LARGER = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A short training of the demo's model, and its page."""
    folder = tmp_path_factory.mktemp("runs")
    run, page = folder / "run", folder / "a page"
    commands = [
        f"train.py --config=configs/quickstart.py --workdir={run} --config.num_epochs=6 "
        "--config.eval.every=6 --config.learning_rate.warmup_epochs=1",
        f"export.py --workdir={run} --checkpoint=last",
    ]
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command.split(), *([f"--out={page}"] if "export" in command else [])],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return run, page


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The validation clips that the run was trained for."""
    cache = tmp_path_factory.mktemp("cache")
    return real_clips.load(data_dir=None, cache_dir=str(cache), frame_size=None)["validation"]


@pytest.fixture(scope="module")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1100,900", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, folders):
    """The page, opened as a file and ready; its console holds no errors at the end."""
    begun = time.monotonic()
    driver.set_window_size(1100, 900)
    driver.get((folders[1] / "index.html").as_uri())
    while not driver.execute_script("return document.body.dataset.ready"):
        assert time.monotonic() - begun < 30, driver.find_element("id", "status").text
        time.sleep(0.05)
    yield driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def shown(page, canvas="person"):
    """The pixels of a canvas, float (h, w, 3)."""
    url = page.execute_script(f"return document.getElementById('{canvas}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(
        float
    )


def settle(page):
    page.execute_async_script(
        "const done = arguments[0]; const look = () =>"
        " Puppet.page.busy || Puppet.page.dirty ? setTimeout(look, 10) : done(); look();"
    )


def joint(page, name):
    return page.find_element("css selector", f"[data-joint={name}]")


def test_a_dragged_arm_changes_the_picture_where_it_goes(page):
    from selenium.webdriver import ActionChains

    page.execute_script(
        "const t = document.getElementById('temperature'); t.value = 0; t.oninput();Puppet.page.show(0)"
    )
    settle(page)
    before, drawn = shown(page), shown(page, "label")
    wrist = joint(page, "left_wrist")
    was = wrist.get_attribute("aria-label")
    ActionChains(page).click_and_hold(wrist).move_by_offset(30, -60).move_by_offset(
        20, -80
    ).release().perform()
    settle(page)
    assert wrist.get_attribute("aria-label") != was
    change = np.abs(shown(page) - before).sum(-1).reshape(64, LARGER, 32, LARGER).mean((1, 3))
    label_change = np.abs(shown(page, "label") - drawn).sum(-1)
    near = np.array(Image.fromarray((label_change > 60).astype(np.uint8) * 255).resize((32, 64))) > 0
    grown = np.array([np.roll(near, (y, x), (0, 1)) for y in range(-4, 5) for x in range(-4, 5)]).any(0)
    assert change[near].mean() > 10
    assert change[near].mean() > 8 * change[~grown].mean()
    legs = change[50:]
    assert legs.mean() < change[near].mean() / 10


def test_arrow_keys_move_a_joint(page):
    from selenium.webdriver.common.keys import Keys

    wrist = joint(page, "right_wrist")
    x = lambda: float(wrist.get_attribute("cx"))  # noqa: E731
    begun = x()
    wrist.send_keys(Keys.ARROW_RIGHT * 3)
    assert x() == pytest.approx(begun + 3 * 0.01 * SIZE[1], abs=0.3)
    assert page.switch_to.active_element == wrist


def test_labels_are_drawn_as_in_python(page, clips):
    for recording in clips:
        poses = real_clips.read_keypoints()[recording.scene][recording.start :][:, ROWS].astype(np.float32)
        drawn = page.execute_script(
            "return Array.from(Puppet.page.skeleton.draw(Float32Array.from(arguments[0])))",
            poses[3].ravel().tolist(),
        )
        difference = np.abs(np.array(drawn).reshape(*SIZE, 3) - recording.labels[3] / 255)
        assert difference.mean() < 0.004 and difference.max() < 0.15


def test_another_persons_motion_is_fitted_as_in_python(page):
    keypoints = real_clips.read_keypoints()
    driver, person = (stance(keypoints[scene]) for scene in ("star_jump", "beam_cam2"))
    pose = keypoints["star_jump"][50]
    expected = retarget(pose[None], driver, person)[0][ROWS]
    moved = page.execute_script(
        "const by = (name) => PUPPET.scenes.find((scene) => scene.name === name).stance;"
        "const pose = Float32Array.from(arguments[0]);"
        "return Array.from(Puppet.page.skeleton.retarget(pose, by('star_jump'), by('beam_cam2')))",
        pose[ROWS].ravel().tolist(),
    )
    np.testing.assert_allclose(np.array(moved).reshape(-1, 2), expected, atol=1e-5)


def test_thirty_frames_are_those_of_jax(page, folders, clips):
    run, _ = folders
    config = config_files.load(run, defaults.get_config())
    parts = Components.build(config)
    model = parts.model
    recording = next(r for r in clips if r.scene == "star_jump")
    variables, *_ = restore_for_evaluation(model, run, "last", SIZE, None, averaged=parts.optimizer.averages)
    batch = {
        "given": recording.frames[None, :1],
        "labels": recording.labels[None, :1],
        "mask": np.ones(1, np.float32),
        "index": np.zeros(1, np.uint32),
        "sample": np.zeros(1, np.uint32),
    }
    started = jax.jit(make_begin(model))(variables, batch, {"seed": np.uint32(0)})
    constants, carry = started["constants"], started["state"].carry
    step = jax.jit(make_step(model, variables, 1, constants, carry))
    leaves = jax.tree.leaves((constants, carry))
    noise = np.random.default_rng(0).normal(size=(30, 1, *model.latent_shape(SIZE))).astype(np.float32)
    labels = to_unit(recording.labels)
    frame, expected = started["state"].frame, []
    for t in range(30):
        frame, *_ = step(jnp.int32(1 + t), frame, jnp.asarray(labels[t + 1][None]), noise[t], *leaves)
        expected.append(np.asarray(frame))
    found = page.execute_async_script(
        "const [labels, noises, done] = arguments; (async () => {"
        "const { model, scene } = Puppet.page; model.begin(scene.unpacked); const frames = [];"
        "for (let t = 0; t < 30; t++) {"
        "  const { frame } = await model.step(Float32Array.from(labels[t]), Float32Array.from(noises[t]));"
        "  frames.push(Array.from(frame)); }"
        "done(JSON.stringify(frames)); })()",
        [label.ravel().tolist() for label in labels[1:31]],
        [one.ravel().tolist() for one in noise],
    )
    difference = np.abs(np.array(json.loads(found)).reshape(30, *SIZE, 3) - np.concatenate(expected))
    assert difference.max() < 1e-3


def test_a_recording_plays(page):
    page.find_element("id", "record").click()
    page.find_element("id", "play").click()
    time.sleep(2)
    page.find_element("id", "record").click()
    time.sleep(1)
    video = "document.getElementById('video')"
    width, height = page.execute_script(f"return [{video}.videoWidth, {video}.videoHeight]")
    assert (height, width) == (SIZE[0] * LARGER, SIZE[1] * LARGER)
    page.execute_script(f"{video}.play()")
    time.sleep(0.7)
    assert page.execute_script(f"return {video}.currentTime") > 0.3
    assert page.find_element("id", "download").get_attribute("download").endswith(".webm")


def test_samples_differ_and_come_back(page):
    page.execute_script("const t = document.getElementById('temperature'); t.value = 2; t.oninput();")
    settle(page)
    first = shown(page)
    page.find_element("id", "sample").click()
    settle(page)
    assert np.abs(shown(page) - first).max() > 0
    page.execute_script("const s = document.getElementById('seed'); s.onchange();")
    settle(page)
    np.testing.assert_array_equal(shown(page), first)


def test_noise_is_standard_normal_and_correlated(page):
    series = np.array(
        page.execute_script(
            "const noise = new Puppet.Noise(3, [50, 2], 0.9); const all = [];"
            "for (let t = 0; t < 400; t++) { all.push(Array.from(noise.current)); noise.advance(); }"
            "return all"
        )
    )
    assert abs(series.mean()) < 0.05 and abs(series.std() - 1) < 0.05
    assert np.corrcoef(series[:-1].ravel(), series[1:].ravel())[0, 1] == pytest.approx(0.9, abs=0.02)


def test_it_fits_a_phone(page):
    page.set_window_size(500, 800)  # as narrow as Chromium's windows get
    page.execute_script("document.getElementById('show-masks').click()")
    inner, whole = page.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert whole <= inner


def test_every_control_has_a_name(page):
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('button, select, input, video, canvas, [role=button]')].filter("
        "(one) => !(one.textContent.trim() || one.labels?.[0]?.textContent.trim() ||"
        " one.getAttribute('aria-label'))).map((one) => one.outerHTML)"
    )
    assert unnamed == []


def test_twenty_frames_a_second(page):
    page.find_element("id", "play").click()
    begun = page.execute_script("return Puppet.page.model.t")
    time.sleep(3)
    frames = page.execute_script("return Puppet.page.model.t") - begun
    assert frames / 3 >= 20
