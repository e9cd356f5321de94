// Reads safetensors: single and half precision, and int8 differences from another model (`lib.differences`).

const SCALE = ":scale";

let halves; // the values of all half-precision numbers, made once

function fromHalf(stored) {
  if (!halves) {
    halves = new Float32Array(65536);
    for (let bits = 0; bits < 65536; bits++) {
      const [sign, exponent, fraction] = [bits & 0x8000 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
      if (exponent === 31) halves[bits] = fraction ? NaN : sign * Infinity;
      else halves[bits] = exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * fraction * 2 ** -24;
    }
  }
  return Float32Array.from(stored, (bits) => halves[bits]);
}

const READERS = {
  F32: (buffer) => new Float32Array(buffer),
  F16: (buffer) => fromHalf(new Uint16Array(buffer)),
  I8: (buffer) => new Int8Array(buffer),
};

/** The tensors of a file, by name, each with `data` and `shape`; and its metadata.
 *
 * @param {ArrayBuffer} buffer - the whole file
 */
export function read(buffer) {
  const size = buffer.byteLength < 8 ? Infinity : Number(new DataView(buffer).getBigUint64(0, true));
  if (8 + size > buffer.byteLength) throw new Error("the weights are incomplete, or no safetensors file");
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [from, to] }] of Object.entries(entries)) {
    if (!(dtype in READERS)) throw new Error(`the weights hold numbers of the kind ${dtype}, which is not read`);
    if (8 + size + to > buffer.byteLength) throw new Error("the weights are incomplete: load the page again");
    tensors[name] = { shape, data: READERS[dtype](buffer.slice(8 + size + from, 8 + size + to)) };
  }
  return { tensors, metadata };
}

/** The whole tensors of a model that is stored as its difference from its parent. */
export function join(stored, parent) {
  const whole = { ...parent };
  for (const [name, tensor] of Object.entries(stored)) {
    const scale = stored[name + SCALE]?.data; // one number a row
    if (scale) {
      const width = tensor.data.length / scale.length;
      // Product and sum are each rounded once, as in `lib.differences`: storing in a Float32Array rounds.
      const data = parent[name].data.map((w, i) => w + Math.fround(scale[Math.floor(i / width)] * tensor.data[i]));
      whole[name] = { shape: tensor.shape, data };
    } else if (!name.endsWith(SCALE)) whole[name] = tensor;
  }
  return whole;
}
