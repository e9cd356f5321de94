// Runs a widget's model beside the page, so that the page stays responsive.
//
// First message: { widget, models }: loads both. Each later one: { request }, for which the widget computes.

import { open } from "./model.js";

const models = {};
let widget;

/** The whole content of a file; `report` is told how many bytes came since the last time. */
async function fetchFile({ name, bytes }, report) {
  const response = await fetch(new URL(`models/${name}.safetensors`, import.meta.url));
  if (!response.ok) throw new Error(`the weights of ${name} are not there (status ${response.status})`);
  const file = new Uint8Array(bytes);
  let length = 0;
  for (const reader = response.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (length + value.length > bytes) throw new Error(`the weights of ${name} are others than this page was made with`);
    file.set(value, length);
    length += value.length;
    report(value.length);
  }
  if (length < bytes) throw new Error(`the weights of ${name} came incomplete: try again`);
  return file.buffer;
}

async function start({ widget: address, models: wanted }) {
  let loaded = 0;
  const report = (bytes) => postMessage({ loaded: (loaded += bytes) });
  const [module, ...files] = await Promise.all([import(address), ...wanted.map((model) => fetchFile(model, report))]);
  const byName = Object.fromEntries(wanted.map(({ name }, i) => [name, files[i]]));
  for (const { name, parent, used } of wanted) if (used) models[name] = open(byName[name], byName[parent]);
  widget = module;
}

addEventListener("message", async ({ data }) => {
  try {
    if (data.models) {
      await start(data);
      postMessage({ ready: true });
    } else postMessage({ result: await widget.compute(models, data.request) });
  } catch (error) {
    const isOffline = error instanceof TypeError && !widget; // what fetch throws
    postMessage({ error: isOffline ? "the model could not be fetched: is the network there?" : error.message });
  }
});
