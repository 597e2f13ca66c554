// Arrays and images as data.js holds them.
"use strict";

globalThis.Puppet = {};

// The bytes of a text in base64.
Puppet.bytes = (text) =>
  Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// The bytes that were compressed by gzip.
Puppet.unzipped = async (bytes) => {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

// {shape, dtype, data: a typed array} of a packed array.
Puppet.unpacked = ({ shape, dtype, data }) => ({
  shape,
  dtype,
  data: new Puppet.arrayOf[dtype](Puppet.bytes(data).buffer),
});
Puppet.arrayOf = { float32: Float32Array, int32: Int32Array, bool: Uint8Array };

// The images of a sheet: {count, pixels: Uint8Array, RGB, one image after the other}.
Puppet.images = async ({ columns, count, url }, [height, width]) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = new Uint8Array(count * height * width * 3);
  for (let number = 0; number < count; number++) {
    const [column, row] = [number % columns, Math.floor(number / columns)];
    const own = context.getImageData(column * width, row * height, width, height).data;
    for (let pixel = 0; pixel < height * width; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        pixels[(number * height * width + pixel) * 3 + channel] = own[pixel * 4 + channel];
      }
    }
  }
  return { count, pixels };
};

// Draw values in [0, 1], of 3 channels or 1 for each pixel, on a canvas of any size.
Puppet.paint = (canvas, values, [height, width]) => {
  const channels = values.length / (height * width);
  const small = Puppet.paint.small;
  [small.width, small.height] = [width, height];
  const context = small.getContext("2d");
  const image = context.createImageData(width, height);
  for (let pixel = 0; pixel < height * width; pixel++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = values[pixel * channels + (channels === 3 ? channel : 0)];
      image.data[pixel * 4 + channel] = Math.round(255 * value);
    }
    image.data[pixel * 4 + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  canvas.getContext("2d").drawImage(small, 0, 0, canvas.width, canvas.height);
};
Puppet.paint.small = document.createElement("canvas");
