// Standard normal noise that a seed determines, correlated from frame to frame as in evaluation.
"use strict";

Puppet.Noise = class {
  // shape: of one frame's noise. correlation: of successive frames, in [0, 1).
  constructor(seed, shape, correlation) {
    this.state = seed >>> 0;
    this.count = shape.reduce((product, side) => product * side, 1);
    this.correlation = correlation;
    this.current = this.independent();
  }

  // Advance by one frame.
  advance() {
    const fresh = this.independent();
    const kept = this.correlation;
    const share = Math.sqrt(1 - kept * kept);
    this.current = this.current.map((value, place) => kept * value + share * fresh[place]);
  }

  independent() {
    const values = new Float32Array(this.count);
    for (let place = 0; place < this.count; place++) {
      // Box and Muller's method; 1 - u is in (0, 1].
      const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
      values[place] = radius * Math.cos(2 * Math.PI * this.uniform());
    }
    return values;
  }

  // A number in [0, 1): the generator mulberry32.
  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let mixed = this.state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  }
};
