// The page: what is shown, and what keys, pointers and controls do.
"use strict";

const PERIOD = 40; // milliseconds between frames while a video plays
const LARGEST = 1024; // pixels of the shown frame's longer side, up to eight times the model's
const SETTLING = 10; // frames
const NUDGE = 0.01; // of the frame, by an arrow key; with Shift five times as much
const SVG = "http://www.w3.org/2000/svg";
const element = (id) => document.getElementById(id);

Puppet.Page = class {
  constructor(description) {
    this.description = description;
    this.size = description.frame_size;
    this.kind = description.label.kind;
    this.model = new Puppet.Model(description);
    this.playing = false;
    this.left = 0; // frames to predict; a model that sees previous frames needs several to take a pose
    this.times = [];
    this.pending = 0; // changes of person or clip that are under way
    this.queue = Promise.resolve();
    this.draw = 0; // how many samples were asked for
  }

  async start() {
    const { description, size } = this;
    if (this.kind === "pose") {
      element("skeleton").removeAttribute("hidden");
      this.skeleton = new Puppet.Skeleton(description.skeleton, size);
      element("hint").textContent =
        "Drag a joint, or select it with Tab and move it with the arrow keys (hold Shift for larger steps). " +
        "Play loops the motion of a clip. Another person's motion is adapted to the person shown.";
    } else {
      element("joints-label").hidden = true;
      element("hint").textContent = {
        image: "Press Play to predict a video from the labels of a clip. These are images, so there are no joints to drag.",
        vector: "Press Play, then steer with the sliders or the arrow keys.",
        none: "Press Play to continue the video. This model takes no labels.",
      }[this.kind];
    }
    for (const id of ["label-figure", "nearest-figure"]) element(id).hidden = !this.hasImages;
    for (const id of ["clip-label", "position-label"]) element(id).hidden = !this.hasImages;
    element("masks-label").hidden = !description.masks.length;
    element("latent").hidden = !description.has_latent;
    const larger = Math.max(1, Math.min(8, Math.floor(LARGEST / Math.max(...size))));
    for (const id of ["person", "label", "nearest"]) this.sized(element(id), id === "person" ? larger : 1);
    element("box").style.width = `min(92vw, ${(34 * size[1]) / Math.max(...size)}rem)`;
    for (const name of description.masks) {
      const figure = document.createElement("figure");
      const canvas = this.sized(document.createElement("canvas"), 1);
      canvas.id = `mask-${name}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Share of each pixel that is copied from the ${name} frame`);
      const caption = document.createElement("figcaption");
      caption.textContent = `copied from the ${name} frame`;
      figure.append(canvas, caption);
      element("masks").append(figure);
    }
    description.scenes.forEach((scene, number) => {
      element("scene").add(new Option(scene.name, number));
      scene.clips.forEach((clip, place) => {
        element("clip").add(new Option(clip.name, `${number} ${place}`));
      });
    });
    element("scene").parentElement.hidden = description.scenes.length < 2;
    if (this.kind === "vector") this.addSliders();
    await this.chooseScene(0);
    await this.model.load(this.scene.unpacked, this.label(), this.noise.current);
    this.model.begin(this.scene.unpacked);
    await this.step();
    this.say("Ready.");
    this.listen();
    document.body.dataset.ready = "true";
    setInterval(() => this.tick(), PERIOD);
  }

  get hasImages() {
    return this.kind === "pose" || this.kind === "image";
  }

  // A canvas with the frame's proportions.
  sized(canvas, larger) {
    [canvas.width, canvas.height] = [this.size[1] * larger, this.size[0] * larger];
    return canvas;
  }

  listen() {
    element("scene").onchange = () => this.change(() => this.chooseScene(Number(element("scene").value)));
    element("clip").onchange = () => this.change(() => this.chooseClip());
    element("play").onclick = () => this.setPlaying(!this.playing);
    element("reset").onclick = () => this.change(() => this.chooseScene(this.sceneNumber));
    element("record").onclick = () => (this.recorder ? this.recorder.stop() : this.record());
    element("position").oninput = () => this.show(Number(element("position").value));
    element("temperature").oninput = () => this.changed();
    element("seed").onchange = () => {
      this.draw = 0;
      this.renewNoise();
    };
    element("sample").onclick = () => {
      this.draw += 1;
      this.renewNoise();
    };
    element("show-joints").onchange = () => {
      element("skeleton").style.display = element("show-joints").checked ? "" : "none";
    };
    element("show-masks").onchange = () => {
      element("masks").hidden = !element("show-masks").checked;
    };
  }

  // Change the person or the clip: one change after the other, and no frame is predicted meanwhile.
  change(work) {
    this.pending += 1;
    this.queue = this.queue
      .then(work)
      .catch((error) => this.stopped(error))
      .finally(() => (this.pending -= 1));
  }

  // Begin anew with a scene's person, at its first label.
  async chooseScene(number) {
    this.sceneNumber = number;
    const scene = this.description.scenes[number];
    if (!scene.unpacked) {
      if (scene.train) {
        scene.frames = await Puppet.images(scene.train.frames, this.size);
        scene.labels = await Puppet.images(scene.train.labels, this.size);
      }
      const state = Object.entries(scene.state).map(([name, array]) => [name, Puppet.unpacked(array)]);
      scene.unpacked = { frame: Puppet.unpacked(scene.frame), state: Object.fromEntries(state) };
    }
    this.scene = scene;
    element("scene").value = number;
    element("clip").value = `${number} 0`;
    Puppet.paint(element("person"), scene.unpacked.frame.data, this.size);
    this.renewNoise();
    await this.chooseClip();
  }

  // Take the labels of the selected clip, and begin with its first.
  async chooseClip() {
    const [number, place] = element("clip").value.split(" ").map(Number);
    const source = this.description.scenes[number];
    const clip = source.clips[place];
    if (this.kind === "pose") {
      const joints = this.skeleton.joints.length;
      const { data } = Puppet.unpacked(clip.keypoints);
      clip.poses = Array.from({ length: clip.length }, (_, t) =>
        data.slice(2 * joints * t, 2 * joints * (t + 1)),
      );
      if (number !== this.sceneNumber) {
        const [from, to] = [source.stance, this.scene.stance];
        if (!from || !to || !clip.transferable) {
          this.say(`${clip.name} cannot be transferred: nose, hips and ankles are not known in every frame.`);
          element("clip").value = `${this.sceneNumber} 0`;
          return this.chooseClip();
        }
        clip.poses = clip.poses.map((pose) => this.skeleton.retarget(pose, from, to));
      }
    } else if (this.kind === "image") {
      clip.images ??= await Puppet.images(clip.labels, this.size);
    }
    this.clip = clip;
    element("position").max = clip.length - 1;
    if (this.model.runtime) this.model.begin(this.scene.unpacked);
    this.show(Math.min(this.description.n_past, clip.length - 1));
  }

  // Take the label of frame t of the clip.
  show(t) {
    this.position = t;
    element("position").value = t;
    if (this.kind === "pose") {
      this.pose = this.clip.poses[t];
      this.placeJoints();
    }
    this.changed();
  }

  changed() {
    element("temperature-value").textContent = element("temperature").value;
    const settles = this.description.sees_previous && this.hasImages && !this.playing;
    this.left = settles ? SETTLING : 1;
  }

  renewNoise() {
    const { latent_shape, noise_correlation } = this.description;
    const seed = (Number(element("seed").value) + Math.imul(this.draw, 0x9e3779b1)) >>> 0;
    this.noise = new Puppet.Noise(seed, latent_shape, noise_correlation);
    this.changed();
  }

  setPlaying(playing) {
    this.playing = playing;
    this.left = 0;
    element("play").textContent = playing ? "Pause" : "Play";
    if (!playing && this.skeleton) this.placeJoints();
  }

  // The label of the next frame, as the model takes it.
  label() {
    if (this.kind === "pose") return this.skeleton.draw(this.pose);
    if (this.kind === "image") {
      const size = 3 * this.size[0] * this.size[1];
      const start = this.position * size;
      return Float32Array.from(this.clip.images.pixels.subarray(start, start + size), (v) => v / 255);
    }
    if (this.kind === "vector") return this.action();
    return new Float32Array(0);
  }

  async tick() {
    if (this.busy || this.pending || document.hidden) return;
    if (this.playing) {
      if (this.hasImages) this.show((this.position + 1) % this.clip.length);
      this.noise.advance();
      this.changed();
    }
    if (this.left) await this.step();
  }

  // Predict a frame and show it.
  async step() {
    this.busy = true;
    this.left -= 1;
    try {
      const temperature = Number(element("temperature").value);
      const label = this.label();
      const begun = performance.now();
      const found = await this.model.step(
        label,
        this.noise.current.map((value) => temperature * value),
      );
      if (!found) return;
      const { frame, masks } = found;
      this.times = [...this.times.slice(-19), performance.now() - begun];
      Puppet.paint(element("person"), frame, this.size);
      if (this.hasImages) this.compare(label);
      if (element("show-masks").checked) {
        for (const [name, mask] of Object.entries(masks)) {
          Puppet.paint(element(`mask-${name}`), mask, this.size);
        }
      }
      const mean = this.times.reduce((sum, time) => sum + time, 0) / this.times.length;
      const device = this.model.backend === "webgpu" ? "the GPU (WebGPU)" : "the CPU (WebAssembly)";
      element("speed").textContent = `${mean.toFixed(mean < 10 ? 1 : 0)} ms per frame on ${device}`;
    } catch (error) {
      this.stopped(error);
    } finally {
      this.busy = false;
    }
  }

  compare(label) {
    Puppet.paint(element("label"), label, this.size);
    const { frames, labels, train } = this.scene;
    if (!train) return;
    const number = Puppet.nearest(label, labels);
    const size = label.length;
    const found = Float32Array.from(frames.pixels.subarray(number * size, (number + 1) * size), (v) => v / 255);
    Puppet.paint(element("nearest"), found, this.size);
    const of = train.count < train.of ? `${train.count} of ${train.of}` : `${train.count}`;
    element("nearest-caption").textContent = `training frame with the nearest label (${of} searched)`;
  }

  stopped(error) {
    this.setPlaying(false);
    this.say(`Something went wrong (${error.message}). Please reload the page.`);
    console.error(error);
  }

  say(sentence) {
    element("status").textContent = sentence;
  }

  // Joints.

  placeJoints() {
    const { skeleton, pose, size } = this;
    const svg = element("skeleton");
    const [height, width] = size;
    const unit = Math.max(height, width) / 64;
    if (!this.handles) {
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.lines = skeleton.limbs.flatMap(({ joints, color }) =>
        joints.slice(1).map((end, before) => {
          const line = document.createElementNS(SVG, "line");
          line.setAttribute("stroke", `rgb(${color})`);
          line.setAttribute("stroke-width", 0.5 * unit);
          svg.append(line);
          return { line, ends: [joints[before], end] };
        }),
      );
      this.handles = skeleton.joints.map((name, joint) => {
        const handle = document.createElementNS(SVG, "g");
        for (const [role, radius] of [["reach", 2.4], ["mark", 0.7]]) {
          const circle = document.createElementNS(SVG, "circle");
          circle.setAttribute("class", role);
          circle.setAttribute("r", radius * unit);
          circle.setAttribute("stroke-width", 0.15 * unit);
          handle.append(circle);
        }
        handle.setAttribute("tabindex", "0");
        handle.setAttribute("role", "button");
        handle.setAttribute("aria-roledescription", "joint");
        handle.dataset.joint = name;
        this.listenToJoint(handle, joint);
        svg.append(handle);
        return handle;
      });
    }
    this.handles.forEach((handle, joint) => {
      const known = skeleton.known(pose, joint);
      handle.style.display = known ? "" : "none";
      if (!known) return;
      const [x, y] = [pose[2 * joint], pose[2 * joint + 1]];
      Object.assign(handle.dataset, { x, y });
      handle.setAttribute("transform", `translate(${x * width} ${y * height})`);
      if (this.playing) return;
      const where = `${Math.round(100 * x)} % from the left, ${Math.round(100 * y)} % from the top`;
      handle.setAttribute("aria-label", `${skeleton.joints[joint].replaceAll("_", " ")}: ${where}`);
    });
    for (const { line, ends } of this.lines) {
      const known = ends.every((joint) => skeleton.known(pose, joint));
      line.style.display = known ? "" : "none";
      if (!known) continue;
      ends.forEach((joint, end) => {
        line.setAttribute(`x${end + 1}`, pose[2 * joint] * width);
        line.setAttribute(`y${end + 1}`, pose[2 * joint + 1] * height);
      });
    }
  }

  listenToJoint(handle, joint) {
    const release = () => handle.classList.remove("held");
    handle.onpointerdown = (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.classList.add("held");
      handle.focus();
      this.setPlaying(false);
      event.preventDefault();
    };
    handle.onpointermove = (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const box = element("box").getBoundingClientRect();
      const within = (value) => Math.min(Math.max(value, 0), 1);
      this.moveJoint(
        joint,
        within((event.clientX - box.left) / box.width),
        within((event.clientY - box.top) / box.height),
      );
    };
    handle.onpointerup = release;
    handle.onpointercancel = release;
    handle.onkeydown = (event) => {
      const by = Puppet.arrows[event.key];
      if (!by) return;
      event.preventDefault();
      this.setPlaying(false);
      const far = NUDGE * (event.shiftKey ? 5 : 1);
      this.moveJoint(joint, this.pose[2 * joint] + far * by[0], this.pose[2 * joint + 1] + far * by[1]);
    };
  }

  moveJoint(joint, x, y) {
    this.pose = this.skeleton.move(this.pose, joint, x, y);
    this.placeJoints();
    this.changed();
  }

  // Actions: a slider for each entry of the label, within the range of the data's.

  addSliders() {
    this.pressed = new Set();
    this.sliders = this.description.label.ranges.map(([min, max], entry) => {
      const label = document.createElement("label");
      label.textContent = `Action ${entry + 1} `;
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", step: "any", min, max, value: 0, autocomplete: "off" });
      slider.oninput = () => this.changed();
      label.append(slider);
      element("vector").append(label);
      return slider;
    });
    element("vector").hidden = false;
    const steers = (event) => Puppet.arrows[event.key] && !event.target.closest("input, select");
    document.addEventListener("keydown", (event) => {
      if (!steers(event)) return;
      event.preventDefault();
      this.pressed.add(event.key);
    });
    document.addEventListener("keyup", (event) => this.pressed.delete(event.key));
    window.addEventListener("blur", () => this.pressed.clear());
  }

  // The sliders' values; a pressed arrow key is the end of the range of the first or second entry.
  action() {
    const values = Float32Array.from(this.sliders, (slider) => Number(slider.value));
    for (const key of this.pressed) {
      Puppet.arrows[key].forEach((by, entry) => {
        if (!by || entry >= values.length) return;
        values[entry] = Number(by > 0 ? this.sliders[entry].max : this.sliders[entry].min);
      });
    }
    return values;
  }

  // Recording.

  record() {
    const types = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];
    const type = globalThis.MediaRecorder && types.find((one) => MediaRecorder.isTypeSupported(one));
    if (!type) return this.say("This browser cannot record a canvas.");
    const recorder = new MediaRecorder(element("person").captureStream(25), { mimeType: type });
    const parts = [];
    recorder.onerror = ({ error }) => this.say(`The recording failed (${error.message}).`);
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.onstop = () => {
      recorder.stream.getTracks().forEach((track) => track.stop());
      URL.revokeObjectURL(element("video").src);
      const url = URL.createObjectURL(new Blob(parts, { type }));
      element("video").src = url;
      element("download").href = url;
      element("download").download = `puppet.${type.startsWith("video/mp4") ? "mp4" : "webm"}`;
      element("recording").hidden = false;
      element("record").textContent = "Record";
      this.recorder = null;
    };
    recorder.start();
    this.recorder = recorder;
    element("record").textContent = "Stop recording";
  }
};

Puppet.arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

Puppet.page = new Puppet.Page(PUPPET);
Puppet.page.start().catch((error) => {
  Puppet.page.say(`The page could not start (${error.message}). Try a current Chrome, Edge, Firefox or Safari.`);
  throw error;
});
