// The model: an ONNX program of one step, whose state goes from frame to frame.
"use strict";

const FAST = 20; // milliseconds for a frame: fast enough not to try another backend

Puppet.Model = class {
  constructor(description) {
    this.description = description;
  }

  // Load the runtime and the network, which are scripts beside the page: on the GPU if that is fast, otherwise on
  // the CPU. `scene` is one to try it with, `noise` the values for one frame.
  async load(scene, label, noise) {
    const network = Puppet.bytes(PUPPET_MODEL);
    globalThis.PUPPET_MODEL = null; // tens of megabytes of text
    let least = Infinity;
    for (const backend of (await Puppet.hasGraphics()) ? ["webgpu", "wasm"] : ["wasm"]) {
      if (least < FAST) break;
      try {
        const runtime = await Puppet.loadRuntime(backend);
        const options = { executionProviders: [backend], graphOptimizationLevel: "all" };
        const session = await runtime.InferenceSession.create(network, options);
        const tried = { runtime, session, backend };
        const time = await this.timed(tried, scene, label, noise);
        const slower = time < least ? this.chosen : tried;
        if (time < least) [least, this.chosen] = [time, tried];
        await slower?.session.release();
      } catch (error) {
        if (backend === "wasm" && !this.chosen) throw error;
      }
    }
    Object.assign(this, this.chosen);
  }

  // The shortest time of a step in milliseconds, after one that prepares it.
  async timed(tried, scene, label, noise) {
    Object.assign(this, tried);
    this.begin(scene);
    let least = Infinity;
    for (let turn = 0; turn < 3; turn++) {
      const begun = performance.now();
      await this.step(label, noise);
      if (turn) least = Math.min(least, performance.now() - begun);
    }
    return least;
  }

  // Begin with a scene: {frame, state} of unpacked arrays. A step that is still running is then without effect.
  begin(scene) {
    this.video = {};
    this.t = this.description.n_past;
    this.frame = this.tensor(scene.frame);
    this.state = {};
    for (const [name, array] of Object.entries(scene.state)) this.state[name] = this.tensor(array);
  }

  // Predict the next frame from its label and noise (Float32Arrays); returns {frame, masks: {name: values}}, or
  // null where another video has begun in the meantime.
  async step(label, noise) {
    const { frame_size: size, label: kind, latent_shape, inputs, changing, masks } = this.description;
    const shape = kind.size === null ? [1, ...size, 3] : [1, kind.size];
    const all = {
      ...this.state,
      t: new this.runtime.Tensor("int32", Int32Array.of(this.t), []),
      frame: this.frame,
      label: new this.runtime.Tensor("float32", label, shape),
      noise: new this.runtime.Tensor("float32", noise, [1, ...latent_shape]),
    };
    const { video } = this;
    const outputs = await this.session.run(Object.fromEntries(inputs.map((name) => [name, all[name]])));
    if (video !== this.video) return null;
    this.t += 1;
    this.frame = outputs.next_frame;
    for (const name of changing) this.state[name] = outputs[`next_${name}`];
    return {
      frame: outputs.next_frame.data,
      masks: Object.fromEntries(masks.map((name) => [name, outputs[`mask_${name}`].data])),
    };
  }

  tensor({ shape, dtype, data }) {
    return new this.runtime.Tensor(dtype, data, shape);
  }
};

Puppet.hasGraphics = async () => {
  try {
    const adapter = navigator.gpu && (await navigator.gpu.requestAdapter());
    return Boolean(adapter && !adapter.info?.isFallbackAdapter);
  } catch {
    return false;
  }
};

// Load onnxruntime-web with a backend.
Puppet.loadRuntime = async (backend) => {
  await new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `runtime_${backend}.js`;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`runtime_${backend}.js is missing`));
    document.head.append(script);
  });
  const { glue, program } = PUPPET_RUNTIME;
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await Puppet.unzipped(Puppet.bytes(program));
  globalThis.PUPPET_RUNTIME = null;
  const mjs = URL.createObjectURL(new Blob([glue], { type: "text/javascript" }));
  ort.env.wasm.wasmPaths = { mjs };
  return ort;
};
