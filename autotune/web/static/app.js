/* The page's own script; it speaks to /api/v1 as any client does. Apache-2.0, as autotune. */
"use strict";
const $ = (id) => document.getElementById(id);
const API = "/api/v1";

async function call(method, path, body) {
  const sent = { method, headers: { Accept: "application/json" } };
  if (method === "POST") {
    sent.headers["Content-Type"] = "application/json";
    sent.body = JSON.stringify(body || {});
  }
  const answer = await fetch(API + path, sent);
  if (answer.status === 401) { location.href = "/login"; }
  const found = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) { throw Object.assign(new Error(found.detail), found); }
  return found;
}

function copying() {
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = $(button.dataset.copy).textContent;
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch {
        getSelection().selectAllChildren($(button.dataset.copy)); // by hand, without https
        button.textContent = "Selected: press Ctrl-C";
      }
    });
  }
}

/* ---- a new job ---- */

function argsOf(form) {
  const args = {};
  for (const field of form.querySelectorAll("[data-kind]")) {
    const { kind } = field.dataset, usual = field.dataset.default;
    if (kind === "switch") {
      if (field.checked !== (usual === "True")) { args[field.name] = field.checked; }
      continue;
    }
    const text = field.value.trim();
    if (text === "" || text === usual) { continue; }
    if (kind === "lines") { args[field.name] = text.split("\n").map((l) => l.trim()).filter(Boolean); }
    else { args[field.name] = kind === "number" && /^-?\d+$/.test(text) ? Number(text) : text; }
  }
  return args;
}

function jobOf(form) {
  const job = { kind: form.dataset.kind, args: argsOf(form) };
  if ($("j-name").value) { job.name = $("j-name").value; }
  if (/^-?\d+$/.test($("j-priority").value)) { job.priority = Number($("j-priority").value); }
  if ($("j-max_time").value) { job.max_time = $("j-max_time").value; }
  return job;
}

function clearErrors(form) {
  $("plan").hidden = true; // it was of other values
  for (const said of form.querySelectorAll(".error")) { said.hidden = true; }
  for (const field of form.querySelectorAll("[aria-invalid]")) { field.removeAttribute("aria-invalid"); }
}

function showError(form, problem) {
  const at = problem.field ? $("f-" + problem.field) : null;
  const said = at ? $("e-" + problem.field) : $("form-error");
  said.textContent = problem.message;
  said.hidden = false;
  if (at) { at.setAttribute("aria-invalid", "true"); }
  const folded = at && at.closest("details");
  if (folded) { folded.open = true; }
  (at || said).focus();
}

function newJob(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const start = event.submitter ? event.submitter.value === "start" : true;
    clearErrors(form);
    for (const button of form.querySelectorAll("button")) { button.disabled = true; }
    try {
      const job = jobOf(form);
      const found = await call("POST", "/jobs:validate", job).catch(async (refusal) => {
        // What runs now may hold the memory that this job will find at its turn: then it waits for it.
        const runs = start && (await call("GET", "/jobs?state=RUNNING&state=STOPPING&limit=1")).jobs.length;
        if (!runs) { throw refusal; } // so that it stands at its field
      });
      if (start) { location.href = "/jobs/" + (await call("POST", "/jobs", job)).id; return; }
      $("plan-text").textContent = found.said.join("\n") || "Nothing stands against it.";
      $("command").textContent = found.command;
      $("plan").hidden = false;
      $("plan").scrollIntoView();
    } catch (problem) { showError(form, problem); }
    for (const button of form.querySelectorAll("button")) { button.disabled = false; }
  });
}

/* ---- a job ---- */

const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"]);
const MOST_DOTS = 5000;

function cell(row, text, words) {
  const made = row.insertCell();
  made.textContent = text;
  if (words) { made.className = "words"; }
}

function showJob(job) {
  const progress = job.progress || {};
  $("job").dataset.state = job.state;
  $("state").textContent = job.state.toLowerCase();
  $("state").className = "state " + job.state.toLowerCase();
  $("reason").textContent = job.place ? "number " + job.place + " in the queue" : job.reason;
  $("basis").hidden = progress.basis !== "predicted";
  $("bar").max = progress.total || 1;
  $("bar").value = progress.done || 0;
  const left = progress.seconds_left ? ", about " + Math.ceil(progress.seconds_left / 60) + " min left" : "";
  $("where").textContent = progress.total
    ? progress.done + " of " + progress.total + " " + (progress.unit || "") + ", " + progress.phase + " " + progress.at + left : "";
  $("best").textContent = progress.best_so_far
    ? "Best so far: " + progress.best_so_far.toFixed(3) + "× the default (geometric mean, before confirmation)" : "";
  $("unit").textContent = progress.value_unit ? ", in " + progress.value_unit : "";
  $("levels").replaceChildren();
  for (const level of progress.levels || []) {
    const row = $("levels").insertRow();
    cell(row, level.at, true);
    cell(row, level.trials);
    cell(row, level.default === null ? "" : level.default.toPrecision(4));
    cell(row, level.best === null ? "" : level.best.toPrecision(4));
    cell(row, level.speedup === null ? "" : level.speedup.toFixed(3) + "×");
  }
  if (progress.study) {
    const link = document.createElement("a");
    link.href = "/studies/" + encodeURIComponent(progress.study);
    link.textContent = "Study " + progress.study;
    $("study").replaceChildren(link);
    if (job.state === "SUCCEEDED") {
      const report = document.createElement("a");
      report.href = link.href + "/report";
      report.textContent = "Report";
      $("study").append(", ", report);
    }
  }
  $("cancel").hidden = ENDED.has(job.state) && job.state !== "INTERRUPTED";
  $("cancel").disabled = job.state === "STOPPING";
  $("retry").hidden = $("remove").hidden = !ENDED.has(job.state);
}

function landscape() {
  const canvas = $("landscape"), context = canvas.getContext("2d");
  const defaults = {}, dots = [];
  let wanted = false;
  function draw() {
    wanted = false;
    const style = getComputedStyle(document.body), scale = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas; // so that words keep their size on a phone
    canvas.width = width * scale; // which clears it
    canvas.height = height * scale;
    canvas.dataset.dots = dots.length;
    context.scale(scale, scale);
    context.font = style.font;
    const y = (ratio) => height / 2 - Math.log2(ratio) * height / 4;
    context.strokeStyle = context.fillStyle = style.color;
    context.setLineDash([4, 4]);
    for (const ratio of [0.5, 1, 2]) {
      context.lineWidth = ratio === 1 ? 1.5 : 0.5;
      context.beginPath(); context.moveTo(0, y(ratio)); context.lineTo(width, y(ratio)); context.stroke();
    }
    dots.forEach((ratio, i) => context.fillRect((i + 0.5) * width / dots.length - 1.5, Math.max(0, Math.min(height - 3, y(ratio) - 1.5)), 3, 3));
    for (const [text, ratio, below] of [["default", 1, -6], ["twice its time", 2, 16], ["half its time", 0.5, -6]]) {
      context.lineWidth = 4;
      context.lineJoin = "round";
      context.strokeStyle = style.backgroundColor; // readable over the dots
      context.setLineDash([]);
      context.strokeText(text, 4, y(ratio) + below);
      context.fillText(text, 4, y(ratio) + below);
    }
  }
  function soon() {
    if (!wanted) { wanted = true; requestAnimationFrame(draw); }
  }
  addEventListener("resize", soon);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  soon();
  return {
    clear() { dots.length = 0; soon(); },
    add(step) {
      if (step.value === null) { return; }
      if (step.phase === "baseline") { defaults[step.at] = step.value; }
      if (!defaults[step.at]) { return; }
      dots.push(step.value / defaults[step.at]);
      if (dots.length > MOST_DOTS) { dots.splice(0, dots.length - MOST_DOTS); }
      soon();
    },
  };
}

function following(id) {
  let offset = 0;
  return async function more() {
    const answer = await fetch(API + "/jobs/" + id + "/log?offset=" + offset);
    if (!answer.ok) { return; }
    const text = await answer.text(), log = $("log");
    offset = Number(answer.headers.get("X-Next-Offset"));
    if (text) {
      const low = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
      log.append(text);
      if (low) { log.scrollTop = log.scrollHeight; }
    }
  };
}

async function showFiles(id) {
  const found = await call("GET", "/jobs/" + id + "/artifacts");
  $("files").replaceChildren(...found.artifacts.map((file) => {
    const item = document.createElement("li"), link = document.createElement("a");
    link.href = API + "/jobs/" + id + "/artifacts/" + file.name.split("/").map(encodeURIComponent).join("/");
    link.textContent = file.name;
    item.append(link, file.bytes ? " (" + file.bytes.toLocaleString("en") + " bytes)" : " (empty so far)");
    return item;
  }));
  const result = found.artifacts.find((file) => /^result\.(txt|json)$/.test(file.name) && file.bytes && file.bytes < 200000);
  if (result) {
    $("result").textContent = await (await fetch(API + "/jobs/" + id + "/artifacts/" + result.name)).text();
  }
  $("said").hidden = !result;
}

async function machine() {
  const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
  try {
    const { memory, gpus } = await call("GET", "/machine");
    const told = (value, unit) => value === null ? [] : [value + unit];
    const host = memory.total ? [gib(memory.free) + " of " + gib(memory.total) + " GiB of memory free"] : [];
    $("machine").textContent = "This machine: " + [...host, ...gpus.map((gpu) => gpu.name + " " + [
      ...told(gpu.clock_mhz, " MHz"), ...told(gpu.celsius, " °C"), ...told(gpu.watts, " W"), ...told(gpu.busy_percent, " % busy"),
    ].join(", "))].join("; ");
  } catch { $("machine").textContent = ""; }
}

function oneJob(box) {
  const { id } = box.dataset, chart = landscape(), log = following(id);
  const act = (button, action) => $(button).addEventListener("click", async () => {
    $("act-error").hidden = true;
    try { await action(); } catch (problem) { $("act-error").textContent = problem.message; $("act-error").hidden = false; }
  });
  let stream = null, timer = null;
  function follow() {
    chart.clear();
    stream = new EventSource(API + "/jobs/" + id + "/events?tail=1500000");
    stream.addEventListener("attempt", () => chart.clear());
    stream.addEventListener("step", (event) => chart.add(JSON.parse(event.data)));
    stream.addEventListener("job", (event) => showJob(JSON.parse(event.data)));
    stream.addEventListener("end", () => { stream.close(); clearInterval(timer); log(); showFiles(id); });
    timer = setInterval(() => { log(); machine(); }, 2000);
    log();
    machine();
  }
  act("cancel", async () => showJob(await call("POST", "/jobs/" + id + ":cancel")));
  act("retry", async () => { showJob(await call("POST", "/jobs/" + id + ":retry")); stream.close(); follow(); });
  act("remove", async () => { await call("DELETE", "/jobs/" + id); location.href = "/"; });
  follow();
  showFiles(id);
}

function doctor(button) {
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { findings } = await call("GET", "/doctor");
      $("findings").replaceChildren(...findings.map((one) => {
        const item = document.createElement("li");
        item.textContent = [...new Set([one.level, one.check]), one.text].join(": ");
        return item;
      }));
    } catch (problem) { $("findings").textContent = problem.message; }
    button.disabled = false;
  });
}

copying();
if ($("new-job")) { newJob($("new-job")); }
if ($("job")) { oneJob($("job")); }
if ($("doctor")) { doctor($("doctor")); }
