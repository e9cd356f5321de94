// Read and change activations at named sites. The names, and what they mean, are those of `lib.sites`; the
// shapes too, without the batch.
//
//     const patterns = capture("pattern");
//     model.forward(inputs, [edit("z", (z, { shape }) => { ... }, { layers: [2] }), patterns]);
//     patterns.acts[3].data  // heads * queries * keys numbers
//
// Hooks act in their order: a capture that comes after an edit sees what the edit made.

const SITES = [
  "embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_act", "q", "k", "v", "z", "scores", "pattern",
];

/** Keeps a site's activations: `acts[layer]` is that of the last pass, with `data` and `shape`.
 *
 * @param {string} site - one of `SITES`
 * @param {{layers?: number[], tower?: "text" | "vision"}} where - all layers of the model's first tower if not given
 */
export function capture(site, where = {}) {
  const acts = {};
  const see = (data, { shape, layer }) => { acts[layer] = { data: data.slice(), shape }; };
  return { site, ...where, see, acts };
}

/** Changes a site's activation by a function of its numbers and `{shape, layer}`.
 *
 * The function writes into what it gets, or returns as many other numbers.
 */
export function edit(site, change, where = {}) {
  const see = (data, about) => {
    const changed = change(data, about) ?? data;
    if (changed.length !== data.length) {
      throw new Error(`the edit of ${site} returned ${changed.length} numbers; the activation has ${data.length}`);
    }
    return changed;
  };
  return { site, ...where, see };
}

/** The hooks, each with the tower that it belongs to.
 *
 * Throws where the model lacks a site, a layer or a tower.
 */
export function resolve(hooks, towers) {
  return hooks.map((hook) => {
    const { site, layers = [], tower } = hook;
    if (!SITES.includes(site)) throw new Error(`no site ${site}; the sites are ${SITES.join(", ")}`);
    const found = tower ? towers.find(({ name }) => name === tower) : towers[0];
    if (!found) throw new Error(`no ${tower} tower; there is ${towers.map(({ name }) => name).join(", ")}`);
    const nLayers = site === "embed" ? 1 : found.nLayers;
    const wrong = layers.find((layer) => !(layer >= 0 && layer < nLayers));
    if (wrong !== undefined) throw new Error(`no layer ${wrong} of site ${site}: there are ${nLayers}`);
    return { ...hook, tower: found.name };
  });
}
