"""The page in headless Chromium: dragged, played and recorded. Needs chromium, chromedriver, selenium."""

import base64
import dataclasses
import io
import itertools
import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, moving_square, tiny_config
from PIL import Image

from cvae_jax import config as config_files
from cvae_jax import defaults
from cvae_jax.config import Components
from cvae_jax.data.clips import to_unit
from cvae_jax.data.datasets import real_clips
from cvae_jax.data.pose import USED_LANDMARKS, landmark_index
from cvae_jax.data.retarget import retarget, stance
from cvae_jax.models.interface import init_variables
from cvae_jax.puppet import export
from cvae_jax.puppet.step import make_start, make_step
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
    opened(driver, folders[1])
    yield driver
    assert no_errors(driver)


def opened(driver, folder):
    begun = time.monotonic()
    driver.set_window_size(1100, 900)
    driver.get((folder / "index.html").as_uri())
    while not driver.execute_script("return document.body.dataset.ready"):
        assert time.monotonic() - begun < 30, driver.find_element("id", "status").text
        time.sleep(0.05)


def no_errors(driver):
    return [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def rolled_out(driver, labels, noises):
    """The frames that the page's model predicts from labels and noises, each fed back into the next."""
    found = driver.execute_async_script(
        "const [labels, noises, done] = arguments; (async () => {"
        "const { model, scene } = Puppet.page; model.begin(scene.unpacked); const frames = [];"
        "for (let t = 0; t < labels.length; t++) {"
        "  const { frame } = await model.step(Float32Array.from(labels[t]), Float32Array.from(noises[t]));"
        "  frames.push(Array.from(frame)); }"
        "done(JSON.stringify(frames)); })()",
        [np.ravel(label).tolist() for label in labels],
        [np.ravel(noise).tolist() for noise in noises],
    )
    return np.array(json.loads(found))


def shown(page, canvas="person"):
    """The pixels of a canvas, float (h, w, 3)."""
    url = page.execute_script(f"return document.getElementById('{canvas}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(
        float
    )


def settle(page):
    page.execute_async_script(
        "const [done, page] = [arguments[0], Puppet.page]; const look = () =>"
        " page.busy || page.pending || page.left ? setTimeout(look, 10) : done(); look();"
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
    x = lambda: float(wrist.get_attribute("data-x"))  # noqa: E731
    begun = x()
    wrist.send_keys(Keys.ARROW_RIGHT * 3)
    assert x() == pytest.approx(begun + 3 * 0.01, abs=0.01)
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
    constants, state = make_start(model)(variables, recording.frames[:1], recording.labels[:1])
    carry = state.carry
    step = jax.jit(make_step(model, variables, 1, constants, carry))
    leaves = jax.tree.leaves((constants, carry))
    noise = np.random.default_rng(0).normal(size=(30, 1, *model.latent_shape(SIZE))).astype(np.float32)
    labels = to_unit(recording.labels)
    frame, expected = state.frame, []
    for t in range(30):
        frame, *_ = step(jnp.int32(1 + t), frame, jnp.asarray(labels[t + 1][None]), noise[t], *leaves)
        expected.append(np.asarray(frame))
    found = rolled_out(page, labels[1:31], noise)
    difference = np.abs(found.reshape(30, *SIZE, 3) - np.concatenate(expected))
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
        "const text = (one) => [...one.childNodes].filter((part) => part.nodeName === '#text').map("
        "  (part) => part.textContent).join('').trim();"
        "return [...document.querySelectorAll('button, select, input, video, canvas, [role=button]')].filter("
        "(one) => !((one.matches('button') && text(one)) || (one.labels?.[0] && text(one.labels[0])) ||"
        " one.getAttribute('aria-label'))).map((one) => one.outerHTML)"
    )
    assert unnamed == []


def test_people_and_motions_are_chosen(page):
    from selenium.webdriver.support.ui import Select

    page.find_element("id", "show-masks").click()
    person, motion = (Select(page.find_element("id", name)) for name in ("scene", "clip"))
    seen = [shown(page)]
    for name in [option.text for option in person.options][1:]:
        person.select_by_visible_text(name)
        settle(page)
        assert motion.first_selected_option.text.startswith(name)
        seen.append(shown(page))
    assert all(np.abs(one - other).mean() > 5 for one, other in itertools.pairwise(seen))
    before, label = shown(page), shown(page, "label")
    assert shown(page, "mask-context").std() > 5
    motion.select_by_visible_text("star_jump_040")
    page.execute_script("Puppet.page.show(20)")
    settle(page)
    assert np.abs(shown(page) - before).mean() > 1 and np.abs(shown(page, "label") - label).mean() > 5
    page.find_element("id", "reset").click()
    settle(page)
    assert motion.first_selected_option.text.startswith(person.first_selected_option.text)
    np.testing.assert_array_equal(shown(page, "label"), label)


def test_enter_in_the_seed_reloads_nothing(page):
    from selenium.webdriver.common.keys import Keys

    page.execute_script("document.body.dataset.mark = 'here'")
    page.find_element("id", "seed").send_keys("5", Keys.ENTER)
    time.sleep(0.3)
    assert page.execute_script("return document.body.dataset.mark") == "here"


def test_a_motion_with_an_unknown_ankle_is_not_transferred(page):
    from selenium.webdriver.support.ui import Select

    page.execute_script(
        "PUPPET.scenes.forEach((scene) => scene.clips.forEach((c) => (c.transferable = false)))"
    )
    Select(page.find_element("id", "clip")).select_by_index(2)
    settle(page)
    assert "cannot be transferred" in page.find_element("id", "status").text
    assert Select(page.find_element("id", "clip")).first_selected_option.text.startswith("star_jump")


def test_twenty_frames_a_second(page):
    page.find_element("id", "play").click()
    begun = page.execute_script("return Puppet.page.model.t")
    time.sleep(3)
    frames = page.execute_script("return Puppet.page.model.t") - begun
    assert frames / 3 >= 20


KINDS = {
    "image": ("cvae", {"output": "residual", "history": 0, "prior": "learned"}),
    "vector": ("multiscale", {"feedback": 1}),
    "none": ("svg", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pages_of_other_labels_and_models(driver, kind, tmp_path, monkeypatch):
    """Each model feeds its frames back. 30 frames are those of JAX, and the page's controls advance it."""
    config = tiny_config()
    config.model.kind, fields = KINDS[kind]
    config.model[config.model.kind].update(fields)
    recording = moving_square("a", 6, 1, (64, 64))
    if kind != "image":
        labels = np.random.default_rng(0).normal(size=(6, 3 if kind == "vector" else 0)).astype(np.float32)
        recording = dataclasses.replace(recording, labels=labels)
    data = {"train": [recording], "validation": [recording]}
    monkeypatch.setattr("cvae_jax.data.datasets.load", lambda *_, **__: data)
    config.data.name = "frame_folder" if kind == "image" else "moving_mnist"

    def restore(model, workdir, which, frame_size, label_size, averaged):
        return init_variables(model, 0, frame_size, label_size), 0, None

    checks = []
    own = export._check
    monkeypatch.setattr(export, "restore_for_evaluation", restore)
    monkeypatch.setattr(export, "_check", lambda *given: checks.append(own(*given)) or checks[-1])
    export.export(config, tmp_path, "last", tmp_path / "page")
    (check,) = checks
    opened(driver, tmp_path / "page")
    found = rolled_out(driver, check["label"], check["noise"])
    assert np.abs(found.reshape(check["frames"].shape) - check["frames"]).max() < 1e-3

    driver.execute_script("Puppet.page.change(() => Puppet.page.chooseScene(0))")
    settle(driver)
    frame = "return Array.from(Puppet.page.model.frame.data)"
    begun, before = driver.execute_script("return Puppet.page.model.t"), driver.execute_script(frame)
    driver.find_element("id", "play").click()
    time.sleep(1)
    driver.find_element("id", "play").click()
    settle(driver)
    paused = driver.execute_script("return Puppet.page.model.t")
    assert paused > begun + 3
    assert driver.execute_script(frame) != before
    if kind == "vector":
        slider = driver.find_element("css selector", "#vector input")
        least, most = (float(slider.get_attribute(name)) for name in ("min", "max"))
        assert (least, most) == pytest.approx((min(0, labels[:, 0].min()), max(0, labels[:, 0].max())))
        driver.execute_script(
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))"
        )
        assert driver.execute_script("return Puppet.page.label()[0]") == pytest.approx(most)
        driver.execute_script("arguments[0].oninput()", slider)
        settle(driver)
        assert driver.execute_script("return Puppet.page.model.t") == paused + 1
    assert no_errors(driver)
