// Products of matrices, four lanes at a time in WebAssembly, or in plain JavaScript where a browser has none.
//
// A weight matrix stands in WebAssembly's memory, row after row (one row an output), from when the model is
// loaded. Of what is multiplied with it four rows are copied beside it at a time. The whole program is one
// function, assembled below from its instructions.

const ROWS = 4; // of x that share a load of the weights

// Instructions of WebAssembly, by their names in its specification.
const leb = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >> 7)]);
const constant = (n) => [0x41, n]; // i32.const, 0 to 63
const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const tee = (local) => [0x22, local];
const simd = (code, ...operands) => [0xfd, ...leb(code), ...operands];
const load = (offset) => simd(0x00, 4, offset); // v128.load
const zero = simd(0x0c, ...new Array(16).fill(0)); // v128.const
const lane = (n) => simd(0x1f, n); // f32x4.extract_lane
const [ADD, MULTIPLY] = [simd(0xe4), simd(0xe6)]; // f32x4
const [I32_ADD, I32_LESS, F32_ADD, END] = [0x6a, 0x49, 0x92, 0x0b];
const store = [0x38, 2, 0]; // f32.store
const loop = (...body) => [0x03, 0x40, ...body.flat(), END]; // repeats while the body ends with REPEAT
const REPEAT = [0x0d, 0]; // br_if 0

/** The bytes of `four(x, xEnd, w, wEnd, y, yStep)`: y[r, o] = sum over i of x[r, i] w[o, i], of four rows r.
 *
 * x holds them interleaved, four numbers of each row in turn, so that one pointer serves all. yStep is the
 * length of a row of y in bytes.
 */
function program() {
  const [x, xEnd, w, wEnd, y, yStep, from, to, weights] = [0, 1, 2, 3, 4, 5, 6, 7, 8]; // parameters, locals
  const sum = (row) => 9 + row;
  const rows = [...new Array(ROWS).keys()];
  const advance = (local, bytes) => [...get(local), ...constant(bytes), I32_ADD, ...set(local)];
  const body = loop(
    rows.flatMap((row) => [...zero, ...set(sum(row))]),
    [...get(x), ...set(from)],
    loop(
      [...get(w), ...load(0), ...set(weights)],
      rows.flatMap((row) => [
        ...get(from), ...load(16 * row), ...get(weights), ...MULTIPLY, ...get(sum(row)), ...ADD, ...set(sum(row)),
      ]),
      advance(w, 16),
      [...get(from), ...constant(32), I32_ADD, ...constant(32), I32_ADD, ...tee(from), ...get(xEnd), I32_LESS],
      REPEAT,
    ),
    [...get(y), ...set(to)],
    rows.flatMap((row) => [
      ...get(to),
      ...[0, 1, 2, 3].flatMap((n) => [...get(sum(row)), ...lane(n)]), F32_ADD, F32_ADD, F32_ADD,
      ...store,
      ...get(to), ...get(yStep), I32_ADD, ...set(to),
    ]),
    advance(y, 4),
    [...get(w), ...get(wEnd), I32_LESS], // the rows of w follow one another
    REPEAT,
  );
  const [I32, V128] = [0x7f, 0x7b];
  const name = (text) => [text.length, ...[...text].map((letter) => letter.charCodeAt(0))];
  const section = (id, content) => [id, ...leb(content.length), ...content];
  const code = [2, 2, I32, 1 + ROWS, V128, ...body, END]; // two groups of locals
  return new Uint8Array([
    0, ...name("asm").slice(1), 1, 0, 0, 0,
    ...section(1, [1, 0x60, 6, I32, I32, I32, I32, I32, I32, 0]), // one type
    ...section(2, [1, ...name("page"), ...name("memory"), 2, 0, 1]), // a memory is imported
    ...section(3, [1, 0]), // one function
    ...section(7, [1, ...name("four"), 0, 0]),
    ...section(10, [1, ...leb(code.length), ...code]),
  ]);
}

/** Whether this browser runs the program: WebAssembly, and SIMD in it. */
export function hasSimd() {
  return typeof WebAssembly === "object" && WebAssembly.validate(program());
}

/** Room for weight matrices, and products with them.
 *
 * @param {number} room - numbers in all matrices together
 * @param {number} widest - the largest number of inputs or outputs of one
 * @param {boolean} simd - false computes in plain JavaScript
 */
export class Products {
  constructor(room, widest, simd = hasSimd()) {
    if (!simd) return;
    this.x = 0; // addresses in bytes: four rows of x, four of y, then the weights
    this.y = 16 * (widest + 4);
    this.next = 2 * this.y;
    const bytes = this.next + 4 * room + 16;
    try {
      this.memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
    } catch {
      throw new Error(`the browser has no room for this model: it needs ${Math.ceil(bytes / 1e6)} MB`);
    }
    this.floats = new Float32Array(this.memory.buffer);
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(program()), { page: { memory: this.memory } });
    this.four = exports.four;
  }

  /** Puts a matrix where products find it; the same numbers as a view of that place. */
  place(matrix) {
    if (!this.memory) return matrix;
    const start = this.next / 4;
    this.floats.set(matrix, start);
    this.next += 4 * matrix.length;
    return this.floats.subarray(start, start + matrix.length);
  }

  /** x [rows, inputs] times w [outputs, inputs] transposed, plus the bias: [rows, outputs]. */
  linear(x, rows, { weight, bias, inputs, outputs }) {
    const y = new Float32Array(rows * outputs);
    if (this.memory && inputs % 4 === 0) this.#inFours(x, rows, weight, inputs, outputs, y);
    else plain(x, rows, weight, inputs, outputs, y);
    if (bias) for (let row = 0, at = 0; row < rows; row++) for (let o = 0; o < outputs; o++) y[at++] += bias[o];
    return y;
  }

  #inFours(x, rows, weight, inputs, outputs, y) {
    const { floats } = this;
    const end = weight.byteOffset + 4 * inputs * outputs;
    for (let row = 0; row < rows; row += ROWS) {
      const here = Math.min(ROWS, rows - row); // what the remaining rows hold does not matter
      for (let r = 0; r < here; r++) {
        let to = this.x / 4 + 4 * r;
        for (let i = (row + r) * inputs, stop = i + inputs; i < stop; i += 4, to += 16) {
          floats[to] = x[i];
          floats[to + 1] = x[i + 1];
          floats[to + 2] = x[i + 2];
          floats[to + 3] = x[i + 3];
        }
      }
      this.four(this.x, this.x + 16 * inputs, weight.byteOffset, end, this.y, 4 * outputs);
      y.set(floats.subarray(this.y / 4, this.y / 4 + here * outputs), row * outputs);
    }
  }
}

function plain(x, rows, weight, inputs, outputs, y) {
  for (let row = 0, at = 0; row < rows; row++) {
    for (let o = 0, w = 0; o < outputs; o++) {
      let sum = 0;
      for (let i = row * inputs, stop = i + inputs; i < stop; i++) sum += x[i] * weight[w++];
      y[at++] = sum;
    }
  }
}
