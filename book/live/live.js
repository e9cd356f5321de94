"use strict";
// A chapter's widget. Of it and of its model nothing is loaded before the reader asks for it.

for (const section of document.querySelectorAll(".live")) {
  const { widget, models } = section.dataset;
  const status = section.querySelector("[role=status]");
  const files = JSON.parse(models);
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  const here = new URL(".", document.currentScript.src);
  const megabytes = (n) => (n / 1e6).toFixed(n < 1e6 ? 2 : 1);

  if (location.protocol === "file:") { // browsers load neither modules nor weights for files
    status.textContent = "To run the model, serve this folder: python3 -m http.server, and open http://localhost:8000/";
    continue;
  }
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = bytes ? `Run it here (${megabytes(bytes)} MB)` : "Run it here";
  const bar = document.createElement("progress");
  bar.max = bytes || 1;
  bar.setAttribute("aria-label", "Loading the model");
  const amount = document.createElement("span"); // the bar says it to those who hear the page
  amount.setAttribute("aria-hidden", "true");
  const stage = document.createElement("div");
  stage.className = "live-stage";
  stage.tabIndex = -1;
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-label", "Controls and results");
  const close = document.createElement("button");
  close.type = "button";
  close.className = "live-close";
  close.textContent = "Close";
  section.insertBefore(button, status);

  let worker = null;
  const stop = (line) => { // ends the worker: its memory goes with it
    worker?.terminate();
    worker = null;
    for (const part of [bar, amount, stage, close]) part.remove();
    stage.replaceChildren();
    button.hidden = false;
    status.textContent = line;
    section.dataset.state = line ? "failed" : "idle";
  };
  const failed = (why) => stop(`The model does not run here: ${why}`);

  const run = async () => {
    button.hidden = true;
    bar.value = 0;
    amount.textContent = "";
    section.insertBefore(bar, status);
    section.insertBefore(amount, status);
    status.textContent = "Loading …";
    section.dataset.state = "loading";
    let [module, own] = [];
    try {
      module = await import(new URL(`widgets/${widget}.js`, here));
      if (section.dataset.state !== "loading") return; // the page was left meanwhile
      worker = own = new Worker(new URL("worker.js", here), { type: "module" });
    } catch (error) {
      failed("this browser is too old, or a file is missing");
      return;
    }
    let [busy, next, asked] = [null, null, 0];
    const send = () => {
      if (busy || !next || worker !== own) return; // or the widget was closed
      [busy, next, asked] = [next, null, performance.now()];
      section.dataset.state = "busy";
      worker.postMessage({ request: busy.request });
    };
    // Of what is asked while the model computes, only the last is computed.
    const ask = (request, draw) => {
      next = { request, draw };
      send();
    };
    worker.onerror = (event) => failed(event.message || "this browser has no module workers");
    worker.onmessage = ({ data }) => {
      if (data.loaded) {
        bar.value = data.loaded;
        amount.textContent = ` ${megabytes(data.loaded)} of ${megabytes(bytes)} MB`;
      } else if (data.ready) {
        bar.remove();
        amount.remove();
        status.textContent = "";
        section.insertBefore(stage, status);
        section.append(close);
        (async () => module.show(stage, ask))().catch((error) => failed(error.message));
        stage.focus({ preventScroll: true });
      } else if (data.error && !busy) failed(data.error);
      else {
        const { draw } = busy;
        busy = null;
        if (data.error) status.textContent = `Not possible: ${data.error}.`;
        else {
          draw(data.result);
          section.dataset.ms = (performance.now() - asked).toFixed(1);
          status.textContent = "";
        }
        send();
        section.dataset.state = busy ? "busy" : "ready"; // what is drawn may have asked again
      }
    };
    worker.postMessage({ widget: new URL(`widgets/${widget}.js`, here).href, models: files });
  };

  button.addEventListener("click", run);
  close.addEventListener("click", () => { stop(""); button.focus(); });
  addEventListener("pagehide", () => stop(""));
}
