"use strict";
// The page's behaviour: language, light and dark, time, the animation, pointing, questions, values.
const root = document.documentElement, $ = (id) => document.getElementById(id);
const all = (what, where) => [...(where || document).querySelectorAll(what)];
const facts = JSON.parse($("facts").textContent), { T, L, D } = facts;
const say = (en, zh) => (root.lang === "en" ? en : zh);
const map = $("map"), info = $("info"), slider = $("t");
const boxes = all("svg .n"), onMap = map ? boxes.filter((box) => map.contains(box) && box.dataset.en) : [];
let now = 0, chosen = onMap.find((box) => box.dataset.k.startsWith("c/")) || onMap[0], lane = [0, 0];

// Language and colours
const label = () => boxes.forEach((box) => {
  if (!box.dataset.en) return;
  box.setAttribute("aria-label", say(box.dataset.en, box.dataset.zh));
  box.setAttribute("role", "img");
});
$("lang").onclick = () => { root.lang = root.lang === "en" ? "zh-Hans" : "en"; label(); tell(); values(); };
$("theme").onclick = () => {
  const shown = root.dataset.theme || (matchMedia("(prefers-color-scheme:dark)").matches ? "dark" : "light");
  root.dataset.theme = shown === "dark" ? "light" : "dark";
};

// Which time step a key belongs to; the columns in the middle of a long map show the chosen one
const timed = /^((?:x|out|join\/\d+|c\/\d+\/\d)\/)(\d+)(-?)(\/\d)?$/;
const timeOf = (key) => { const m = timed.exec(key); return m && !m[3] ? +m[2] : -1; };
const slots = [];
if (map && facts.around !== null) {
  const old = { [facts.around - 1]: -1, [facts.around]: 0, [facts.around + 1]: 1 };
  for (const element of all("[data-k],[data-from]", map))
    for (const name of ["k", "from", "to"]) {
      const m = timed.exec(element.dataset[name] || "");
      if (m && !m[3] && m[2] in old) slots.push({ element, name, place: old[m[2]], head: m[1], tail: m[4] || "" });
    }
}
const gaps = map ? boxes.filter((box) => map.contains(box) && /^(x|out)\/\d+-$/.test(box.dataset.k)) : [];
function slide() {
  if (facts.around === null) return;
  const middle = Math.min(Math.max(now, 3), T - 4);
  for (const { element, name, place, head, tail } of slots) {
    const t = middle + place, dataset = element.dataset;
    dataset[name] = head + t + tail;
    if (name !== "k") continue;
    for (const text of all("text", element))
      text.textContent = text.textContent.replace(/^(t=|x\[|output\[)\d+/, "$1" + t);
    for (const lang of ["en", "zh"])
      if (dataset[lang]) dataset[lang] = dataset[lang].replace(/(t=|x\[)\d+/g, "$1" + t);
  }
  for (const gap of gaps) {
    const count = gap.dataset.k.includes("/1-") ? middle - 2 : T - middle - 3;
    for (const text of all("text", gap)) text.textContent = text.textContent.replace(/^\d+/, count);
    for (const lang of ["en", "zh"]) gap.dataset[lang] = gap.dataset[lang].replace(/\d+/, count);
  }
  label();
}

// Time
function at(t) {
  now = Math.min(Math.max(t, 0), T - 1);
  slider.value = now;
  $("tv").textContent = now;
  slide();
  all(".now", map).forEach((box) => box.classList.remove("now"));
  all(".run", map).forEach((wire) => wire.classList.remove("run"));
  onMap.filter((box) => timeOf(box.dataset.k) === now).forEach((box) => box.classList.add("now"));
  values();
}

// The animation: what can be computed at once, in the order in which one waits for the other
const cells = () => onMap.filter((box) => /^c\/\d+\/\d\/\d+$/.test(box.dataset.k));
function tick(key) {
  const [, l, d, t] = key.split("/").map(Number);
  return D === 1 ? l + t : l * T + (d ? T - 1 - t : t);
}
let step = -1, timer = 0;
function frame(move) {
  const ticks = [...new Set(cells().map((box) => tick(box.dataset.k)))].sort((a, b) => a - b);
  step = Math.min(Math.max(step + move, 0), ticks.length - 1);
  all(".now", map).forEach((box) => box.classList.remove("now"));
  all(".run", map).forEach((wire) => wire.classList.remove("run"));
  const active = cells().filter((box) => tick(box.dataset.k) === ticks[step]);
  const keys = new Set(active.map((box) => box.dataset.k));
  active.forEach((box) => box.classList.add("now"));
  all(".w", map).forEach((wire) => { if (keys.has(wire.dataset.to)) wire.classList.add("run"); });
  const total = D === 1 ? T + L - 1 : T * L;
  info.textContent = say(`step ${ticks[step] + 1} of ${total}: `, `第 ${ticks[step] + 1} 步，共 ${total} 步：`) +
    active.map((box) => say(box.dataset.en, box.dataset.zh).split(/[:：]/)[0]).join("; ");
  if (step === ticks.length - 1) stop();
}
function stop() { clearInterval(timer); timer = 0; if ($("play")) $("play").setAttribute("aria-pressed", "false"); }
function play() {
  if (timer) return stop();
  if (matchMedia("(prefers-reduced-motion:reduce)").matches) return frame(1);
  const last = Math.max(...cells().map((box) => tick(box.dataset.k)));
  if (step >= 0 && cells().every((box) => !box.classList.contains("now") || tick(box.dataset.k) === last)) step = -1;
  $("play").setAttribute("aria-pressed", "true");
  timer = setInterval(() => frame(1), 600);
  frame(1);
}

// Pointing
function tell() { if (chosen) info.textContent = say(chosen.dataset.en, chosen.dataset.zh); }
function choose(box, isFocused) {
  if (chosen) { chosen.setAttribute("tabindex", "-1"); chosen.classList.remove("sel"); }
  chosen = box;
  box.setAttribute("tabindex", "0");
  box.classList.add("sel");
  if (isFocused) box.focus();
  const m = /^c\/(\d+)\/(\d)\/(\d+)$/.exec(box.dataset.k);
  if (m) {
    if (facts.lanes.some(([l, d]) => l === +m[1] && d === +m[2])) lane = [+m[1], +m[2]];
    if ($("lane")) $("lane").value = lane.join("/");
    values();
  }
  tell();
}
const middle = (box) => { const r = box.getBoundingClientRect(); return [(r.left + r.right) / 2, (r.top + r.bottom) / 2]; };
function nearest(box, dx, dy) {
  const [x, y] = middle(box);
  let best = null, least = Infinity;
  for (const other of onMap) {
    if (other === box || other.classList.contains("kframe")) continue;
    const [a, b] = middle(other), along = (a - x) * dx + (b - y) * dy;
    const score = along + 3 * (Math.abs((a - x) * dy) + Math.abs((b - y) * dx));
    if (along > 4 && score < least) { least = score; best = other; }
  }
  return best;
}
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
onMap.forEach((box) => {
  box.setAttribute("tabindex", "-1");
  box.onclick = () => { choose(box); const t = timeOf(box.dataset.k); if (t >= 0) at(t); };
  box.onmouseenter = () => { info.textContent = say(box.dataset.en, box.dataset.zh); };
  box.onkeydown = (event) => {
    let other = WAYS[event.key] && nearest(box, ...WAYS[event.key]);
    if (event.key === "Home" || event.key === "End") {
      const y = middle(box)[1], row = onMap.filter((each) => Math.abs(middle(each)[1] - y) < 4);
      row.sort((a, b) => middle(a)[0] - middle(b)[0]);
      other = event.key === "Home" ? row[0] : row[row.length - 1];
    }
    if (event.key === "Enter") box.onclick();
    else if (event.key === " ") play();
    else if (other) choose(other, true);
    else if (!WAYS[event.key]) return;
    event.preventDefault();
  };
});

// Cell, equation and source line light together
const lit = all("[data-e]");
function light(number, box) {
  lit.forEach((each) => each.classList.toggle(each.closest("svg") ? "hi" : "lit", number !== "" && each.dataset.e === number));
  all("mark").forEach((each) => each.replaceWith(each.textContent));
  all("ol.equations code").forEach((each) => each.normalize());
  if (!box) return;
  const row = document.querySelector(`ol.equations li[data-e="${number}"] code`), node = row && row.firstChild;
  const text = box.dataset.en.replace(/^.*?(?:: |= )/, "").replace(/^.* = /, "");
  const place = node ? node.data.lastIndexOf(text) : -1;
  if (place < 0) return;
  const term = node.splitText(place);
  term.splitText(text.length);
  const mark = document.createElement("mark");
  term.replaceWith(mark);
  mark.append(text);
}
lit.forEach((each) => {
  const box = each.closest("svg") ? each : null;
  each.setAttribute("tabindex", "0");
  each.onmouseenter = each.onfocus = () => light(each.dataset.e, box);
  each.onmouseleave = each.onblur = () => light("");
});

// Questions
const matches = (point, key) => (point.endsWith("*") ? key.startsWith(point.slice(0, -1)) : key === point);
const asked = all("button.question");
function answer(button, isOpen) {
  asked.forEach((other) => {
    other.setAttribute("aria-expanded", "false");
    $(other.getAttribute("aria-controls")).hidden = true;
  });
  boxes.forEach((box) => box.classList.remove("hi"));
  if (map) at(now);
  if (!isOpen) return;
  all(".now").forEach((box) => box.classList.remove("now"));
  button.setAttribute("aria-expanded", "true");
  $(button.getAttribute("aria-controls")).hidden = false;
  const points = JSON.parse(button.dataset.points);
  boxes.filter((box) => points.some((point) => matches(point, box.dataset.k || ""))).forEach((box) => box.classList.add("hi"));
  if (location.protocol !== "about:") history.replaceState(null, "", "#" + button.id); // not in a notebook's frame
}
asked.forEach((button) => { button.onclick = () => answer(button, button.getAttribute("aria-expanded") !== "true"); });

// Values: heat maps and the numbers beside the equations
const bytes = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
const colours = Object.fromEntries(Object.entries(facts.colours).map(([kind, text]) => [kind, bytes(text)]));
const heats = Object.fromEntries(Object.entries(facts.heats).map(([key, heat]) => [key, { ...heat, data: bytes(heat.data) }]));
for (const image of all("image")) {
  const heat = heats[image.dataset.k];
  if (!heat) continue;
  const canvas = document.createElement("canvas"), width = heat.data.length / heat.units;
  canvas.width = width;
  canvas.height = heat.units;
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, heat.units);
  heat.data.forEach((level, place) => {
    for (let i = 0; i < 3; i++) pixels.data[4 * place + i] = colours[heat.kind][3 * level + i];
    pixels.data[4 * place + 3] = 255;
  });
  context.putImageData(pixels, 0, 0);
  image.setAttribute("href", canvas.toDataURL());
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("class", "cursor");
  for (const [name, value] of [["y1", +image.getAttribute("y")], ["y2", +image.getAttribute("y") + +image.getAttribute("height")]])
    line.setAttribute(name, value);
  image.after(line);
  image.cursor = line;
}
function values() {
  if (!facts.starts.length) return;
  let column = facts.starts.length - 1;
  while (column && facts.starts[column] > now) column--;
  for (const image of all("image"))
    if (image.cursor) {
      const x = +image.getAttribute("x") + (+image.getAttribute("width") * (column + 0.5)) / facts.starts.length;
      image.cursor.setAttribute("x1", x);
      image.cursor.setAttribute("x2", x);
    }
  const unit = +$("unit").value, isPadding = facts.starts[column] >= facts.length;
  for (const place of all("ol.equations output")) {
    const heat = heats[`heat/${lane.join("/")}/${place.dataset.name}`];
    if (!heat || isPadding) { place.textContent = ""; continue; }
    const share = heat.data[unit * facts.starts.length + column] / 255;
    const value = heat.kind === "gate" ? share : (2 * share - 1) * heat.high;
    place.textContent = `${place.dataset.name}[${unit}] ≈ ${value.toFixed(2)}`;
  }
}

// Start
if (slider) {
  slider.oninput = () => { stop(); step = -1; at(+slider.value); };
  $("back").onclick = () => { stop(); frame(-1); };
  $("next").onclick = () => { stop(); frame(1); };
  $("play").onclick = play;
}
if ($("unit")) $("unit").oninput = values;
if ($("lane")) $("lane").onchange = () => { lane = $("lane").value.split("/").map(Number); values(); };
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { stop(); answer(null, false); light(""); }
  if (event.key === "?" && $("keys")) $("keys").open = true;
});
label();
if (map) { at(0); choose(chosen); }
function follow() {
  const linked = $(location.hash.slice(1));
  if (linked && linked.classList.contains("question")) answer(linked, true);
}
addEventListener("hashchange", follow);
follow();
