// Poses: labels drawn as cvae_jax.data.pose draws them, motion of one person for another, joints that are moved.
"use strict";

// A pose is a Float32Array of x and y of each joint, in [0, 1] of the frame's width and height; NaN: not known.
Puppet.Skeleton = class {
  constructor(description, [height, width]) {
    Object.assign(this, description);
    this.size = [height, width];
    this.canvas = document.createElement("canvas");
    this.scale = Math.max(2, Math.min(8, Math.floor(1024 / Math.max(height, width))));
    [this.canvas.width, this.canvas.height] = [width * this.scale, height * this.scale];
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    // The joint that each joint hangs on, as limbs list them; hips and shoulders hang on nothing.
    this.parent = this.joints.map(() => null);
    for (const { joints } of this.limbs) {
      joints.slice(1).forEach((joint, before) => {
        if (joints.length > 2) this.parent[joint] = joints[before];
      });
    }
  }

  known(pose, joint) {
    return Number.isFinite(pose[2 * joint]) && Number.isFinite(pose[2 * joint + 1]);
  }

  // The label image of a pose, values in [0, 1], height x width x 3.
  draw(pose) {
    const { canvas, context, scale } = this;
    const [height, width] = this.size;
    const place = (joint) => [pose[2 * joint] * canvas.width, pose[2 * joint + 1] * canvas.height];
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.lineCap = "round";
    const rounded = Math.max(1, Math.round(this.line_width * width * this.oversampling));
    context.lineWidth = (rounded / this.oversampling) * scale;
    for (const { joints, color } of this.limbs) {
      context.strokeStyle = `rgb(${color})`;
      for (let end = 1; end < joints.length; end++) {
        if (!this.known(pose, joints[end - 1]) || !this.known(pose, joints[end])) continue;
        context.beginPath();
        context.moveTo(...place(joints[end - 1]));
        context.lineTo(...place(joints[end]));
        context.stroke();
      }
    }
    const head = this.head.filter((joint) => this.known(pose, joint)).map(place);
    if (head.length) {
      const mean = (axis) => head.reduce((sum, point) => sum + point[axis], 0) / head.length;
      context.fillStyle = `rgb(${this.head_color})`;
      context.beginPath();
      context.arc(mean(0), mean(1), this.head_radius * canvas.width, 0, 2 * Math.PI);
      context.fill();
    }
    const large = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const values = new Float32Array(height * width * 3);
    const share = 1 / (255 * scale * scale);
    for (let y = 0; y < canvas.height; y++) {
      for (let x = 0; x < canvas.width; x++) {
        const to = (Math.floor(y / scale) * width + Math.floor(x / scale)) * 3;
        const from = (y * canvas.width + x) * 4;
        values[to] += large[from] * share;
        values[to + 1] += large[from + 1] * share;
        values[to + 2] += large[from + 2] * share;
      }
    }
    // Labels are images of 8 bits.
    return values.map((value) => Math.round(255 * value) / 255);
  }

  // The joints that move with a joint: those that hang on it; of the head, all.
  moving(joint) {
    if (this.head.includes(joint)) return this.head;
    const hangs = (one) => one !== null && (one === joint || hangs(this.parent[one]));
    return this.joints.map((_, one) => one).filter(hangs);
  }

  // Move a joint to (x, y). Hands and feet bend their limb, elbows and knees turn on theirs, at the same length.
  move(pose, joint, x, y) {
    const [height, width] = this.size;
    const moved = pose.slice();
    const at = (one) => [pose[2 * one] * width, pose[2 * one + 1] * height];
    const shift = (joints, dx, dy) => {
      for (const one of joints) {
        moved[2 * one] += dx / width;
        moved[2 * one + 1] += dy / height;
      }
    };
    const [x0, y0] = at(joint);
    let goal = [x * width, y * height];
    const parent = this.parent[joint];
    if (parent === null || !this.known(pose, parent)) {
      shift(this.moving(joint), goal[0] - x0, goal[1] - y0);
      return moved;
    }
    const root = this.parent[parent];
    const isFoot = root !== null && this.parent[root] !== null; // a toe turns on its ankle
    if (root === null || isFoot || !this.known(pose, root)) {
      goal = Puppet.atDistance(at(parent), goal, Puppet.distance(at(parent), [x0, y0]));
      shift(this.moving(joint), goal[0] - x0, goal[1] - y0);
      return moved;
    }
    const [upper, lower] = [Puppet.distance(at(root), at(parent)), Puppet.distance(at(parent), [x0, y0])];
    const reach = Math.min(
      Math.max(Puppet.distance(at(root), goal), Math.abs(upper - lower) + 1e-3),
      upper + lower - 1e-3,
    );
    goal = Puppet.atDistance(at(root), goal, reach);
    const side = Math.sign(Puppet.cross(at(root), [x0, y0], at(parent))) || 1;
    const along = (upper * upper - lower * lower + reach * reach) / (2 * reach);
    const aside = side * Math.sqrt(Math.max(0, upper * upper - along * along));
    const [ux, uy] = [(goal[0] - at(root)[0]) / reach, (goal[1] - at(root)[1]) / reach];
    const bend = [at(root)[0] + along * ux - aside * uy, at(root)[1] + along * uy + aside * ux];
    shift([parent], bend[0] - at(parent)[0], bend[1] - at(parent)[1]);
    shift(this.moving(joint), goal[0] - x0, goal[1] - y0);
    return moved;
  }

  // A pose of the person with the stance `source` as the person with `target` would have it (see retarget.py).
  retarget(pose, source, target) {
    const ankles = ["left_ankle", "right_ankle"].map((name) => pose[2 * this.joints.indexOf(name) + 1]);
    const ground = Math.min(Math.max(Math.max(...ankles), source.far), source.close);
    const depth = source.close - source.far;
    const d = depth > 0 ? (ground - source.far) / depth : 0.5;
    const far = target.far_height / source.far_height;
    const scale = far + d * (target.close_height / source.close_height - far);
    const place = target.far + d * (target.close - target.far);
    return pose.map((value, index) =>
      index % 2 ? place + scale * (value - ground) : target.hip_x + scale * (value - source.hip_x),
    );
  }
};

Puppet.distance = ([x0, y0], [x1, y1]) => Math.hypot(x1 - x0, y1 - y0);

// The point at a distance from a point, in the direction of another.
Puppet.atDistance = (from, to, distance) => {
  const apart = Puppet.distance(from, to) || 1;
  return [0, 1].map((axis) => from[axis] + ((to[axis] - from[axis]) * distance) / apart);
};

// On which side of the line from a to b a point lies.
Puppet.cross = (a, b, point) => (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0]);

// The number of the label (of Puppet.images) nearest in L2 to an image with values in [0, 1].
Puppet.nearest = (image, labels) => {
  const wanted = image.map((value) => 255 * value);
  const size = wanted.length;
  let [best, least] = [0, Infinity];
  for (let number = 0; number < labels.count; number++) {
    let sum = 0;
    for (let place = 0, from = number * size; place < size && sum < least; place++, from++) {
      const difference = wanted[place] - labels.pixels[from];
      sum += difference * difference;
    }
    if (sum < least) [best, least] = [number, sum];
  }
  return best;
};
