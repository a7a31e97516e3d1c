// Sends photos to the server of this page and shows its answers. File names, labels and error texts are foreign:
// they enter the page as text only.

const PER_REQUEST = 8; // few photos a request, so that the first answers come soon
const BYTES_PER_REQUEST = 4 << 20; // the server allows each request but a few seconds to arrive
const TRIES = 3;
const PHOTO_SIDE = 512;
const HEAT_SIDE = 128;
const HEAT_COLOUR = [255, 84, 10];
const TOKEN = "flowers-token";
const MODEL = `v2/models/${document.documentElement.dataset.model}`;

const REASONS = {
  empty: "The file is empty.",
  not_a_photo: "The file is not a photo.",
  unsupported_format: "This kind of picture cannot be read.",
  truncated: "The file is cut off: part of the photo is missing.",
  corrupt: "The file is damaged.",
  too_many_pixels: "The photo has too many pixels.",
  too_complex: "The photo takes too long to decode.",
  too_large: "The file is too large for this server.",
  too_slow: "The photo took too long to arrive.",
  overloaded: "The server has too much to do at the moment.",
  unreachable: "The server did not answer.",
  unreadable: "The browser cannot read the file.",
};

const by = (id) => document.getElementById(id);
const copyOf = (id) => by(id).content.cloneNode(true);
const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

const cards = new Map(); // list item -> its photo, in the order in which they came
let queue = [];
let asking = false;
let locked = false; // a token is needed first
let version = null; // what the header shows
let cancel = new AbortController();
let token = "";
try {
  token = sessionStorage.getItem(TOKEN) ?? "";
} catch {
  // a browser that keeps nothing asks again after a reload
}

// --- the server ---

function call(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers, cache: "no-store" });
}

async function errorOf(response) {
  let error;
  try {
    error = (await response.json()).error;
  } catch {
    // a proxy in between answers in its own way
  }
  return { code: String(error?.code ?? `http_${response.status}`), detail: String(error?.detail ?? response.statusText) };
}

async function showModel(answering) {
  let model;
  try {
    const response = await call(MODEL);
    if (response.status === 401) lock();
    if (!response.ok) return;
    model = await response.json();
  } catch {
    return; // the photos' cards will say so
  }
  const more = model.parameters ?? {};
  const classes = Array.isArray(more.classes) ? more.classes.map(String) : [];
  version = String(answering ?? more.version ?? model.versions?.at(-1) ?? "");
  const facts = [model.name, version && `version ${version}`, classes.length && plural(classes.length, "class", "classes")];
  by("model").textContent = facts.filter(Boolean).join(" · ");
  const few = classes.length <= 8;
  if (few && classes.length) by("model").textContent += `: ${classes.join(", ")}`;
  by("classes").hidden = few;
  by("classes").firstElementChild.textContent = "Names of the classes";
  by("classes").lastElementChild.textContent = classes.join(", ");
  by("kept").hidden = !more.keeps_photos;
  by("reload").hidden = !more.last_reload_error;
  by("reload").textContent = `Version ${version} stays in use, as a newer one could not be loaded (${more.last_reload_error}).`;
}

function lock() {
  by("gate-note").textContent = token
    ? "The server did not accept this token."
    : "This server answers only with a token. It is kept until this tab is closed.";
  by("token").setAttribute("aria-invalid", String(token !== ""));
  locked = true;
  if (by("gate").hidden) {
    by("gate").hidden = false;
    by("token").focus();
  }
}

by("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  token = by("token").value;
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // see above
  }
  by("token").value = "";
  by("gate").hidden = true;
  locked = false;
  by("pick").focus();
  showModel();
  run();
});

// --- asking, one request after the other ---

const living = (batch) => batch.filter((item) => cards.has(item));

function nextBatch() {
  const batch = [];
  let bytes = 0;
  queue = living(queue);
  while (queue.length && batch.length < PER_REQUEST) {
    bytes += cards.get(queue[0]).file.size;
    if (batch.length && bytes > BYTES_PER_REQUEST) break;
    batch.push(queue.shift());
  }
  return batch;
}

async function run() {
  if (asking) return;
  asking = true;
  try {
    for (let batch; !locked && (batch = nextBatch()).length; ) await ask(batch);
  } finally {
    asking = false;
  }
}

async function ask(batch) {
  // One file that was moved or deleted since would make the browser refuse the whole request.
  const readable = await Promise.all(
    batch.map((item) => cards.get(item)?.file.slice(0, 1).arrayBuffer().then(() => true, () => false)),
  );
  const gone = { code: "unreadable", detail: "was it moved or deleted?" };
  batch.filter((_, i) => !readable[i]).forEach((item) => refuse(item, gone, false));
  batch = batch.filter((_, i) => readable[i]);

  for (let attempt = 1; (batch = living(batch)).length; attempt += 1) {
    const body = new FormData();
    for (const item of batch) body.append("files", cards.get(item).file, cards.get(item).name);
    const { signal } = cancel;
    let response, answer;
    try {
      response = await call("predict?heatmap=true&top=5", { method: "POST", body, signal });
      if (response.ok) answer = (await response.json()).items;
    } catch (error) {
      if (signal.aborted) continue; // what was cleared is no longer alive
      if (!response) return lost(batch);
      answer = null;
    }
    if (response.ok) {
      batch.forEach((item, i) => settle(item, answer?.[i]));
      const now = answer?.find((item) => item?.model_version)?.model_version;
      if (now !== undefined && String(now) !== version) {
        version = String(now);
        showModel(version);
      }
      return;
    }
    if (response.status === 401) {
      queue.unshift(...batch);
      lock();
      return report();
    }
    if ([408, 413].includes(response.status) && batch.length > 1) return halves(batch);
    const error = await errorOf(response);
    if (response.status !== 503 || attempt === TRIES) {
      return living(batch).forEach((item) => refuse(item, error, response.status !== 413));
    }
    const after = Number.parseFloat(response.headers.get("Retry-After") ?? "1");
    const seconds = Math.min(Math.max(Number.isNaN(after) ? 1 : after, 0.1), 30);
    report(`The server is busy, trying again in ${plural(Math.ceil(seconds), "second")}`);
    await pause(seconds);
  }
}

async function halves(batch) {
  const middle = Math.ceil(batch.length / 2);
  await ask(batch.slice(0, middle));
  await ask(batch.slice(middle));
}

// A server may close the line on a request that is too large; if it answers otherwise, smaller ones may pass.
async function lost(batch) {
  const alive = await call(MODEL).then(() => true, () => false);
  if (alive && batch.length > 1) return halves(batch);
  const all = alive ? batch : [...batch, ...queue.splice(0)];
  const detail = alive ? "the connection broke; is the file too large?" : "";
  for (const item of living(all)) refuse(item, { code: "unreachable", detail }, true);
}

// --- one card a photo ---

function add(files) {
  if (!files.length) return report("No photo was found in it");
  const first = by("cards").firstChild;
  for (const { file, name = file.name } of files) {
    const item = copyOf("card").firstElementChild;
    cards.set(item, { file, name, state: "waiting" });
    queue.push(item);
    item.querySelector("h3").textContent = name;
    item.querySelector(".remove").setAttribute("aria-label", `Remove ${name}`);
    item.querySelector("canvas").setAttribute("aria-label", `photo ${name}, middle square`);
    by("cards").insertBefore(item, first); // the newest photos come first
    near.observe(item);
  }
  report();
  run();
}

function fill(item, content, state) {
  const card = cards.get(item);
  if (!card) return;
  card.state = state;
  item.classList.remove("waiting");
  item.querySelector(".body").replaceChildren(content);
  report();
}

function settle(item, answer) {
  if (!answer || answer.error || typeof answer.score !== "number") {
    return refuse(item, answer?.error ?? { code: "bad_answer", detail: "the server's answer cannot be understood" }, !answer?.error);
  }
  const content = copyOf("answer");
  const known = answer.label !== null;
  content.querySelector(".best b").textContent = known ? answer.label : "None of these";
  content.querySelector(".best span").textContent = known ? percent(answer.score) : "";
  content.querySelector(".none").hidden = known;
  content.querySelector(".none").textContent = known ? "" : nearest(answer.reason);
  for (const { label, score } of answer.top ?? []) {
    const line = copyOf("line");
    line.querySelector(".name").textContent = label;
    line.querySelector(".share").textContent = percent(score);
    line.querySelector("i").style.setProperty("--v", `${100 * score}%`);
    content.querySelector("ol").append(line);
  }
  content.querySelector("ol").hidden = !answer.top?.length;
  content.querySelector(".facts").textContent = facts(answer);
  if (answer.heatmap?.[0]?.length) {
    content.querySelector(".toggle").hidden = false;
    content.querySelector(".toggle").addEventListener("click", () => toggleHeat(item, answer));
  }
  fill(item, content, "answered");
  Object.assign(cards.get(item) ?? {}, { label: answer.label ?? "", score: answer.score, reason: answer.reason });
}

// The heading says "None of these" already.
function nearest(reason) {
  const why = (reason ?? "").replace(/^none of these: /, "");
  return `${why && `${why[0].toUpperCase()}${why.slice(1)}. `}The nearest classes are:`;
}

function refuse(item, { code, detail }, again) {
  const content = copyOf("refusal");
  content.querySelector(".wrong").textContent = REASONS[code] ?? "The server gave no answer for this photo.";
  content.querySelector("code").textContent = code;
  content.querySelector("span").textContent = detail ?? "";
  fill(item, content, again ? "failed" : "unread");
  Object.assign(cards.get(item) ?? {}, { error: detail ? `${code}: ${detail}` : code });
}

function percent(score) {
  if (score > 0.999 && score < 1) return "> 99.9 %";
  if (score < 0.001 && score > 0) return "< 0.1 %";
  return `${(100 * score).toFixed(1)} %`;
}

function facts({ model_version: number, timing = {} }) {
  const parts = [["queue_ms", "waiting"], ["decode_ms", "decoding"], ["infer_ms", "in the model"]];
  const times = parts.filter(([key]) => typeof timing[key] === "number");
  return [
    number === undefined ? "" : `version ${number}`,
    times.map(([key, words]) => `${timing[key].toFixed(timing[key] < 10 ? 1 : 0)} ms ${words}`).join(", "),
  ].filter(Boolean).join(" · ");
}

// --- pictures ---

// Only photos near the window are held as pixels, so a thousand of them take no more memory than a few.
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cards.get(target);
    if (!card) continue;
    card.near = isIntersecting;
    if (isIntersecting) drawing = drawing.then(() => draw(target));
    else if (card.drawn) {
      const canvas = target.querySelector("canvas");
      canvas.width = canvas.height = 0;
      card.drawn = false;
    }
  }
}, { rootMargin: "1200px 0px" });
let drawing = Promise.resolve(); // one at a time: a decoded photo can take 100 MB and more

async function draw(item) {
  const card = cards.get(item);
  if (!card?.near || card.drawn || card.blank) return;
  try {
    const bitmap = await createImageBitmap(card.file); // turned upright by its EXIF
    const side = Math.min(bitmap.width, bitmap.height);
    const canvas = item.querySelector("canvas");
    canvas.width = canvas.height = Math.min(side, PHOTO_SIDE);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "#fff"; // what the network sees behind transparent parts
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, (bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    card.drawn = true;
  } catch {
    card.blank = true; // the server may still read it
    item.querySelector("canvas").hidden = true;
    item.querySelector(".blank").hidden = false;
  }
}

function toggleHeat(item, { label, top, heatmap }) {
  const photo = item.querySelector(".photo");
  const shown = photo.classList.toggle("seen");
  const legend = item.querySelector(".legend");
  item.querySelector(".toggle").setAttribute("aria-pressed", String(shown));
  legend.hidden = !shown;
  photo.querySelector(".heat")?.remove();
  if (!shown) return;
  const canvas = document.createElement("canvas");
  canvas.className = "heat";
  canvas.setAttribute("aria-hidden", "true");
  const place = paint(canvas, heatmap);
  const likeliest = label ?? top?.[0]?.label ?? "a class";
  legend.textContent = place
    ? `Orange marks what spoke for ${likeliest}, most of all ${place}.`
    : `No single part of the photo spoke for ${likeliest}.`;
  photo.append(canvas);
}

// Paints the positive values, interpolated between the cells' centres, and returns where the highest one is.
function paint(canvas, grid) {
  const rows = grid.length;
  const columns = grid[0].length;
  const values = grid.flat();
  const peak = Math.max(...values);
  if (!(peak > 0)) return "";
  canvas.width = canvas.height = HEAT_SIDE;
  const context = canvas.getContext("2d");
  const image = context.createImageData(HEAT_SIDE, HEAT_SIDE);
  const place = (i, cells) => {
    const at = Math.min(Math.max(((i + 0.5) * cells) / HEAT_SIDE - 0.5, 0), cells - 1);
    const low = Math.floor(at);
    return [low, Math.min(low + 1, cells - 1), at - low];
  };
  for (let y = 0; y < HEAT_SIDE; y += 1) {
    const [top, bottom, down] = place(y, rows);
    for (let x = 0; x < HEAT_SIDE; x += 1) {
      const [left, right, across] = place(x, columns);
      const above = grid[top][left] * (1 - across) + grid[top][right] * across;
      const below = grid[bottom][left] * (1 - across) + grid[bottom][right] * across;
      const heat = Math.max(above * (1 - down) + below * down, 0) / peak;
      image.data.set([...HEAT_COLOUR, 190 * heat], 4 * (y * HEAT_SIDE + x));
    }
  }
  context.putImageData(image, 0, 0);
  const best = values.indexOf(peak);
  const third = (cell, cells, names) => names[Math.floor((3 * (cell + 0.5)) / cells)];
  const height = third(Math.floor(best / columns), rows, ["top", "", "bottom"]);
  const side = third(best % columns, columns, ["left", "", "right"]);
  return height || side ? `at the ${[height, side].filter(Boolean).join(" ")}` : "in the middle";
}

// --- what is said and done about all cards ---

function report(more = "") {
  const all = [...cards.values()];
  const count = (state) => all.filter((card) => card.state === state).length;
  const parts = [`${count("answered")} of ${plural(all.length, "photo")} answered`];
  if (count("unread")) parts.push(`${count("unread")} could not be read`);
  if (count("failed")) parts.push(`${count("failed")} got no answer`);
  if (locked && count("waiting")) parts.push("a token is needed");
  const text = [all.length ? parts.join(", ") : "", more].filter(Boolean).join(". ");
  if (by("status").textContent !== text) by("status").textContent = text;
  by("tools").hidden = !all.length;
  by("again").hidden = !count("failed");
  document.body.classList.toggle("busy", all.length > 0);
}

function remove(item) {
  near.unobserve(item);
  cards.delete(item);
  item.remove();
}

by("cards").addEventListener("click", (event) => {
  const button = event.target.closest(".remove");
  if (!button) return;
  const item = button.closest(".card");
  const next = item.nextElementSibling ?? item.previousElementSibling;
  remove(item);
  (next?.querySelector(".remove") ?? by("pick")).focus();
  report();
});

by("clear").addEventListener("click", () => {
  [...cards.keys()].forEach(remove);
  queue = [];
  cancel.abort();
  cancel = new AbortController();
  by("pick").focus();
  report("All photos are removed");
});

by("again").addEventListener("click", () => {
  for (const [item, card] of cards) {
    if (card.state !== "failed") continue;
    card.state = "waiting";
    delete card.error;
    item.classList.add("waiting");
    item.querySelector(".body").replaceChildren(copyOf("card").querySelector(".state"));
    queue.push(item);
  }
  by("pick").focus();
  report();
  run();
});

by("csv").addEventListener("click", () => {
  // A spreadsheet takes a cell that starts with one of these for a formula.
  const cell = (value = "") => `"${String(value).replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const rows = [...cards.values()].map(({ name, label, score, error, reason }) => [name, label, score, error, reason].map(cell).join(","));
  const url = URL.createObjectURL(new Blob(["\ufefffilename,label,score,error,reason\r\n", ...rows.map((row) => `${row}\r\n`)], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
});

// --- ways in ---

for (const [button, input] of [["pick", "files"], ["snap", "camera"]]) {
  by(button).addEventListener("click", () => by(input).click());
  by(input).addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = ""; // the same file may be chosen again
    if (files.length) add(files.map((file) => ({ file })));
  });
}

let pasted = 0;
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  // Browsers call every picture of the clipboard image.png.
  add(files.map((file) => (file.name === "image.png" ? { file, name: `pasted ${(pasted += 1)}.png` } : { file })));
});

const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  by("curtain").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) by("curtain").hidden = true;
});
addEventListener("drop", async (event) => {
  by("curtain").hidden = true;
  if (!holdsFiles(event)) return;
  event.preventDefault();
  // The items can be read only before the first await.
  const dropped = [...event.dataTransfer.items].filter((item) => item.kind === "file").map((item) => {
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? entry : item.getAsFile();
  });
  const found = [];
  for (const one of dropped) {
    if (one instanceof File) found.push({ file: one });
    else if (one) found.push(...(await photosIn(one)));
  }
  add(found);
});

// Other files lie in folders too, unseen and unmeant.
async function photosIn(entry) {
  try {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      return file.type.startsWith("image/") ? [{ file, name: entry.fullPath.slice(1) }] : [];
    }
    const reader = entry.createReader();
    const children = [];
    for (let some; (some = await new Promise((done, failed) => reader.readEntries(done, failed))).length; ) children.push(...some);
    children.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
    return (await Promise.all(children.map(photosIn))).flat();
  } catch {
    return []; // a folder that may not be read
  }
}

by("app").hidden = false;
showModel();
