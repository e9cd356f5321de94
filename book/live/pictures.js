// Pictures to a model's input, as the image processors of the organisms do it.

/** The pixels that a model reads, [channel, row, column].
 *
 * @param {{data: Uint8ClampedArray, width: number, height: number}} picture - as a canvas gives it, four numbers
 *   a pixel; of grey ones the first counts
 * @param {object} settings - the content of preprocessor_config.json, or its part in processor_config.json
 * @param {number} channels - 3, or 1 for grey
 */
export function pixels({ data, width, height }, settings, channels) {
  const { size, image_mean: mean, image_std: std, rescale_factor: factor } = settings;
  if (width !== size.width || height !== size.height) {
    throw new Error(`the picture has ${width} x ${height} pixels; the model reads ${size.width} x ${size.height}`);
  }
  const area = width * height;
  return Float32Array.from({ length: channels * area }, (_, i) => {
    const channel = Math.floor(i / area);
    return (data[4 * (i % area) + channel] * factor - mean[channel]) / std[channel];
  });
}

/** The patches of pixels [channel, row, column], [patch, channel * row * column]: one product embeds them. */
export function patches(image, channels, side, patch) {
  const across = side / patch;
  const found = new Float32Array(image.length);
  let to = 0;
  for (let number = 0; number < across * across; number++) {
    const [top, left] = [Math.floor(number / across) * patch, (number % across) * patch];
    for (let channel = 0; channel < channels; channel++) {
      for (let row = 0; row < patch; row++, to += patch) {
        const from = (channel * side + top + row) * side + left;
        found.set(image.subarray(from, from + patch), to);
      }
    }
  }
  return found;
}
