// The page: reads the form, asks for the learned picture and then for the fixed one, and shows both as they come.

import { drawCurve } from "/static/curve.js";
import { Refused, ask, events } from "/static/stream.js";

const $ = (id) => document.getElementById(id);
const SMALL = 256; // pixels: below it a picture is scaled up without smoothing
let model = null;
let running = null; // AbortController while pictures are made

const token = () => $("token").value.trim();
const lines = {
  learned: { name: "learned", label: "learned", times: [] },
  fixed: { name: "fixed", label: "fixed", times: [] },
};

async function start() {
  draw();
  await describe();
  $("form").addEventListener("submit", (event) => { event.preventDefault(); make(); });
  $("stop").addEventListener("click", () => running?.abort());
  $("other-seed").addEventListener("click", () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]; });
  $("quality").addEventListener("input", showQuality);
  $("token").addEventListener("change", describe);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    if (event.target === $("prompt") && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  });
}

async function describe() {
  try {
    model = (await (await ask("/v1/models", token())).json()).data[0];
  } catch (error) {
    complain(error);
    return;
  }
  $("error").textContent = "";
  const about = model.tpdm;
  $("prompt").maxLength = about.limits.prompt;
  if (!about.learned) {
    $("lead").textContent = `${model.id} with its own schedule of ${about.default_steps} steps: no TPM is loaded. Start the server with --tpm to see the learned schedule beside it.`;
    $("learned").hidden = true;
    document.querySelector(".pair").classList.add("alone");
  }
  $("fixed").querySelector("h2").textContent = `Fixed, ${about.default_steps} steps`;
  $("quality").disabled = !about.gamma_conditioned;
  $("quality-hint").textContent = about.gamma_conditioned
    ? "Left: fewer steps. Right: more care."
    : about.learned ? "No quality setting: this TPM was trained for one balance of steps and quality." : "No quality setting: no TPM is loaded.";
  showQuality();
  showExamples(about.examples);
  draw();
}

function showExamples(examples) {
  $("examples-field").hidden = examples.length === 0;
  $("examples").replaceChildren(...examples.map(({ name, prompt }, level) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const words = document.createElement("small");
    const dots = document.createElement("span");
    button.type = "button";
    dots.className = "level";
    dots.ariaHidden = "true";
    dots.textContent = `${"●".repeat(level + 1)}${"○".repeat(examples.length - level - 1)} `;
    words.append(dots, name);
    button.append(words, prompt);
    button.addEventListener("click", () => { $("prompt").value = prompt; $("form").requestSubmit(); });
    item.append(button);
    return item;
  }));
  if (!$("prompt").value && examples.length) $("prompt").value = examples[0].prompt;
}

function showQuality() {
  $("quality-value").textContent = $("quality").disabled ? "" : Number($("quality").value).toFixed(2);
}

async function make() {
  if (model === null) await describe();
  if (model === null) return;
  running?.abort();
  const mine = running = new AbortController();
  const common = { prompt: $("prompt").value, seed: Number($("seed").value) };
  const about = model.tpdm;
  for (const name of Object.keys(lines)) clear(name);
  busy(true);
  $("results").scrollIntoView({ block: "nearest" });
  try {
    // One after the other, so that the seconds compare: together they would wait for each other.
    const learned = about.learned
      ? await follow("learned", { ...common, ...(about.gamma_conditioned ? { quality: Number($("quality").value) } : {}) }, mine.signal)
      : null;
    const fixed = await follow("fixed", { ...common, num_inference_steps: about.default_steps }, mine.signal);
    summarise(learned, fixed);
  } catch (error) {
    if (error.name === "AbortError") $("summary").textContent = "Stopped.";
    else complain(error);
  } finally {
    if (running === mine) {
      running = null;
      busy(false);
    }
  }
}

async function follow(name, fields, signal) {
  const figure = $(name);
  lines[name].times = [1];
  for await (const event of events(fields, token(), signal)) {
    if (event.step) {
      lines[name].times.push(event.time);
      numbers(figure, `step ${event.step}`);
      if (event.b64_json) show(figure, event.b64_json, `After step ${event.step}: ${fields.prompt}`);
      draw();
    } else if (event.type === "image_generation.completed") {
      lines[name].times = event.times;
      show(figure, event.b64_json, fields.prompt);
      numbers(figure, `${event.steps} steps · ${event.seconds.toFixed(2)} s`);
      draw();
      return event;
    }
  }
  throw new Refused("the connection ended before the picture; try again", 0);
}

function show(figure, base64, words) {
  const image = figure.querySelector("img");
  image.onload = () => image.classList.toggle("small", image.naturalWidth <= SMALL);
  image.src = `data:image/png;base64,${base64}`;
  image.alt = words;
  image.hidden = false;
  figure.querySelector(".empty").hidden = true;
}

function clear(name) {
  lines[name].times = [];
  const figure = $(name);
  numbers(figure, "");
  figure.querySelector("img").hidden = true;
  figure.querySelector(".empty").hidden = false;
  $("error").textContent = $("summary").textContent = "";
  draw();
}

function numbers(figure, words) {
  figure.querySelector(".numbers").textContent = words;
}

function summarise(learned, fixed) {
  const said = (one) => `${one.steps} steps in ${one.seconds.toFixed(2)} s`;
  $("summary").textContent = learned
    ? `Learned: ${said(learned)}. Fixed: ${said(fixed)}. ${Math.round(100 * learned.steps / fixed.steps)} % of the steps.`
    : `Done: ${said(fixed)}.`;
  const warnings = new Set([...(learned?.warnings ?? []), ...(fixed.warnings ?? [])]);
  if (warnings.size) $("summary").textContent += ` ${[...warnings].join("; ")}.`;
  const flagged = [["Learned", learned], ["Fixed", fixed]].filter(([, one]) => one?.nsfw_content_detected).map(([name]) => name);
  if (flagged.length) $("summary").textContent += ` Flagged by the safety checker: ${flagged.join(", ")}.`;
}

function draw() {
  drawCurve($("curve"), [lines.fixed, lines.learned], model?.tpdm.default_steps ?? 28);
}

function busy(yes) {
  // Not "disabled", which would take the focus away from who presses it.
  $("stop").ariaDisabled = String(!yes);
  $("results").ariaBusy = String(yes);
}

function complain(error) {
  if (error.status === 401) {
    $("token-field").hidden = false;
    $("token").focus();
  }
  $("error").textContent = error instanceof Refused ? error.message : "The server cannot be reached; is it running?";
}

start();
