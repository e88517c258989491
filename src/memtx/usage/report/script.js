"use strict";
// All that is shown is put in as text, never as markup: texts and words are not to be trusted.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const COLOURS = 8, SHOWN = 16, PLACES = 12;
const state = { text: 0, reader: 0, colour: "read", token: 0, chapter: null, all: false };

function make(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
    else if (name === "style") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else if (value !== null) node.setAttribute(name, value);
  }
  for (const child of children) node.append(child);
  return node;
}
function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  return (share >= 0.0995 ? (100 * share).toFixed(0) : (100 * share).toFixed(1)) + "%";
}
const shown = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣") || "∅";
const word = (id) => shown(data.words[id]);

// What the tokens of a text read at the chosen reader, as [[chapter, share], ...] each.
const made = new Map();
function reads(text) {
  const key = `${text} ${state.reader}`;
  if (!made.has(key)) {
    const all = data.texts[text].reads;
    const one = (entries) => entries.map(([chapter, mille]) => [chapter, mille / 1000]);
    made.set(key, state.reader < all.length ? all[state.reader].map(one) : mean(all));
  }
  return made.get(key);
}
function mean(all) {
  return all[0].map((_, place) => {
    const total = new Map();
    for (const reader of all) for (const [chapter, mille] of reader[place])
      total.set(chapter, (total.get(chapter) || 0) + mille / 1000 / all.length);
    return [...total].sort((a, b) => b[1] - a[1]);
  });
}
const reader = () => data.readers[state.reader] || data.mean;
// The chapter that a token read most; shared chapters are read by all, and tell nothing of it.
const main = (entries) => entries.find((each) => each[0] >= reader().shared);
const share = (entries, chapter) => (entries.find((each) => each[0] === chapter) || [0, 0])[1];

function colourOf(chapter) {
  const rank = reader().order.indexOf(chapter);
  return rank >= 0 && rank < COLOURS ? `var(--c${rank})` : "var(--rest)";
}
function paint(node, colour, strength) {
  node.style.backgroundColor = strength > 0 ? `rgba(${colour}, calc(var(--strong) * ${Math.min(1, strength).toFixed(3)}))` : "";
  node.style.borderBottomColor = strength > 0.25 ? `rgb(${colour})` : "transparent";
}

function drawText() {
  const text = data.texts[state.text];
  const box = $("text");
  const nodes = text.pieces.map((piece, place) => {
    const node = make("span", { class: "token", role: "option", id: `t${place}`, "aria-selected": "false" });
    if (/^\s*$/.test(piece)) node.append(make("span", { class: "mark" }, shown(piece)));
    node.append(piece);
    return node;
  });
  box.replaceChildren(...nodes);
  state.token = Math.min(state.token, nodes.length - 1);
  colourText();
  chooseToken(state.token, false);
}
function colourText() {
  const text = data.texts[state.text], entries = reads(state.text), nodes = $("text").children;
  const changing = state.colour === "change" && state.chapter === null;
  const peak = changing ? Math.max(...text.divergence, 1e-9)
    : Math.max(...entries.map((each) => state.chapter === null ? (main(each) || [0, 0])[1] : share(each, state.chapter)), 1e-9);
  for (let place = 0; place < nodes.length; place++) {
    const top = main(entries[place]);
    let label = `${shown(text.pieces[place])}, token ${place + 1}`;
    if (changing) {
      paint(nodes[place], "var(--change)", text.divergence[place] / peak);
      label += `, changed by ${text.divergence[place]} nats`;
    } else {
      const chapter = state.chapter === null ? top && top[0] : state.chapter;
      const part = state.chapter === null ? (top ? top[1] : 0) : share(entries[place], chapter);
      paint(nodes[place], chapter === undefined ? "var(--rest)" : colourOf(chapter), part / peak);
      label += chapter === undefined ? ", read nothing" : `, read chapter ${chapter} with ${percent(part)}`;
    }
    nodes[place].setAttribute("aria-label", label);
  }
  $("legend").textContent = changing
    ? `Stronger colour: the next-token distribution is further from that without memory (at most ${peak.toFixed(2)} nats).`
    : state.chapter === null
      ? `The colour is the chapter that a token read most${reader().shared ? ", shared ones left out" : ""}, stronger the more it read (at most ${percent(peak)}).`
      : `Stronger colour: the token read more of chapter ${state.chapter} (at most ${percent(peak)}).`;
}

function chooseToken(place, scroll) {
  const nodes = $("text").children;
  const before = nodes[state.token];
  if (before) { before.classList.remove("chosen"); before.setAttribute("aria-selected", "false"); }
  state.token = place;
  const node = nodes[place];
  node.classList.add("chosen");
  node.setAttribute("aria-selected", "true");
  $("text").setAttribute("aria-activedescendant", node.id);
  if (scroll) node.scrollIntoView({ block: "nearest" });
  drawToken();
}
function drawToken() {
  const text = data.texts[state.text], place = state.token;
  $("token-title").textContent = `Token ${place + 1} of ${text.pieces.length}: ${shown(text.pieces[place])}`;
  const entries = reads(state.text)[place];
  const body = [make("h3", {}, "Read")];
  body.push(entries.length ? make("ul", {}, ...entries.slice(0, 6).map(([chapter, part]) => make("li", {}, bar(chapter, part))))
    : make("p", { class: "hint" }, "nothing"));
  const tops = state.reader < text.tops.length ? text.tops[state.reader][place] : [];
  if (tops.length) body.push(make("p", { class: "hint" }, "Memory tokens: " +
    tops.map(([token, mille]) => `${token} (${percent(mille / 1000)})`).join(", ")));
  body.push(make("h3", {}, "Next token"), nextTable(text, place));
  if (place < text.next_on.length) body.push(make("p", { class: "hint" },
    `The text goes on with “${shown(text.pieces[place + 1])}”: ${percent(text.next_off[place])} without memory, ${percent(text.next_on[place])} with it.`));
  body.push(make("p", { class: "hint" }, `Memory moved the distribution by ${text.divergence[place]} nats (KL).`));
  $("token-body").replaceChildren(...body);
}
function bar(chapter, part) {
  return make("div", { style: { display: "grid", "grid-template-columns": "6.5rem 1fr 3.5rem", gap: ".5rem", "align-items": "center" } },
    `Chapter ${chapter}`, make("div", { class: "bar" }, make("i", { style: { width: `${100 * part}%`, background: `rgb(${colourOf(chapter)})` } })),
    make("span", { class: "number" }, percent(part)));
}
function nextTable(text, place) {
  const rows = text.on[place].map(([on, p], rank) => {
    const [off, q] = text.off[place][rank];
    return make("tr", {}, make("td", {}, make("code", {}, word(off))), make("td", { class: "number" }, percent(q / 1000)),
      make("td", { class: "apart" }, make("code", {}, word(on))), make("td", { class: "number" }, percent(p / 1000)));
  });
  return make("table", {}, make("thead", {}, make("tr", {}, make("th", { scope: "col", colspan: "2" }, "without memory"),
    make("th", { scope: "col", colspan: "2", class: "apart" }, "with memory"))), make("tbody", {}, ...rows));
}

function drawChapters() {
  const here = reader(), count = state.all ? here.order.length : Math.min(SHOWN, here.order.length);
  const chapters = here.order.slice(0, count);
  if (state.chapter !== null && !chapters.includes(state.chapter)) chapters.push(state.chapter);
  $("chapters").replaceChildren(...chapters.map((chapter) => {
    const load = here.load[chapter];
    return make("li", {}, make("button", {
      type: "button", "data-chapter": chapter, "aria-pressed": String(state.chapter === chapter),
      on: { click: () => chooseChapter(state.chapter === chapter ? null : chapter) } },
      make("span", { class: "swatch", style: { background: `rgb(${colourOf(chapter)})` } }), `Chapter ${chapter}`,
      make("div", { class: "bar" }, make("i", { style: { width: `${(100 * load) / Math.max(...here.load, 1e-9)}%`, background: `rgb(${colourOf(chapter)})` } })),
      make("span", { class: "number" }, percent(load))));
  }));
  const hidden = here.order.length - count;
  $("more").hidden = hidden === 0;
  $("more").textContent = `Show ${hidden} more`;
  $("chapters-hint").textContent = `${here.order.length} chapters by their share of all reading; ${here.dead.length} never read with 1% or more.` +
    " Press one to see who reads it.";
}
function chooseChapter(chapter) {
  state.chapter = chapter;
  for (const button of $("chapters").querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.chapter) === chapter && chapter !== null));
  colourText();
  drawChapter();
  // On a phone it stands below the list.
  if (chapter !== null && matchMedia("(max-width: 52rem)").matches) $("chapter").scrollIntoView({ block: "start" });
}
function drawChapter() {
  const chapter = state.chapter;
  $("chapter").hidden = chapter === null;
  if (chapter === null) return;
  $("chapter-title").textContent = `Chapter ${chapter}`;
  const body = [make("h3", {}, "Who reads it")];
  const places = [];
  data.texts.forEach((text, number) => reads(number).forEach((entries, place) => {
    const part = share(entries, chapter);
    if (part > 0) places.push([part, number, place]);
  }));
  places.sort((a, b) => b[0] - a[0]);
  for (const [part, number, place] of places.slice(0, PLACES)) {
    const pieces = data.texts[number].pieces;
    const cut = (from, to) => pieces.slice(Math.max(0, from), to).join("").replace(/\s+/g, " ");
    body.push(make("button", { type: "button", class: "place", on: { click: () => go(number, place) } },
      `${percent(part)} `, cut(place - 8, place), make("span", { class: "hit" }, pieces[place].trim() ? pieces[place] : shown(pieces[place])), cut(place + 1, place + 7)));
  }
  if (!places.length) body.push(make("p", { class: "hint" }, "No token of these texts."));
  const said = state.reader < data.readers.length ? reader().said[chapter] : null;
  if (said) {
    body.push(make("h3", {}, "What its most read memory tokens write"), make("p", { class: "hint" },
      "Words made likelier by value and output projection, norm and head alone; later layers are left out."));
    for (const [token, ids] of said) body.push(make("p", {}, `${token}: `, make("code", {}, ids.map(word).join("  "))));
  }
  const effect = data.effects && data.effects.bank === reader().bank && data.effects.chapters.find((each) => each[0] === chapter);
  if (effect) body.push(make("h3", {}, "Without this chapter"), make("p", {},
    `The answer “${data.effects.answer}” changes by ${effect[1].toFixed(3)} nats.`));
  $("chapter-body").replaceChildren(...body);
}
function go(text, place) {
  if (text !== state.text) { state.text = text; $("pick-text").value = text; state.token = place; drawText(); }
  chooseToken(place, true);
  $("text").focus();
}

function drawNumbers() {
  const rows = data.readers.map((each) => [each.label, each.routed ? "routed" : "dense", String(each.load.length), each.mean_entropy.toFixed(2),
    each.entropy_of_load.toFixed(2), String(each.dead.length)]);
  const parts = [table(["reader", "kind", "chapters", "entropy of a token", "of the load", "dead"], rows)];
  const texts = data.texts.map((each) => [each.name, String(each.pieces.length), each.loss_off === null ? "–" : each.loss_off.toFixed(3),
    each.loss_on === null ? "–" : each.loss_on.toFixed(3)]);
  parts.push(make("h3", {}, "Loss, nats per token"), table(["text", "tokens", "without memory", "with memory"], texts));
  if (data.texts.length > 1) parts.push(make("h3", {}, `Overlap of chapters between texts: ${reader().label}`),
    table(["", ...data.texts.map((each) => each.name)], reader().overlap.map((row, at) => [data.texts[at].name, ...row.map((each) => each.toFixed(2))])));
  if (data.effects) parts.push(make("h3", {}, "An answer with chapters taken out"),
    make("p", { class: "hint" }, `“${data.effects.prompt}” → “${data.effects.answer}”: ${data.effects.whole.toFixed(3)} nats with memory, ` +
      `${data.effects.off.toFixed(3)} without.`),
    table(["without chapter", "change, nats"], data.effects.chapters.map(([chapter, change]) => [String(chapter), change.toFixed(3)])));
  $("numbers").replaceChildren(...parts);
}
function table(head, rows) {
  const cell = (tag, value, at) => make(tag, { class: at ? "number" : "", scope: tag === "th" ? "col" : null }, value);
  return make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map((each, at) => cell("th", each, at)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((each, at) => cell("td", each, at)))))));
}

// The nearest token on the line above (-1) or below (1).
function line(step) {
  const nodes = [...$("text").children], from = nodes[state.token].getClientRects()[0];
  let best = state.token, far = Infinity;
  nodes.forEach((node, place) => {
    const box = node.getClientRects()[0];
    if (!box || step * (box.top - from.top) < from.height / 2) return;
    const distance = Math.abs(box.top - from.top) * 100 + Math.abs(box.left - from.left);
    if (distance < far) { far = distance; best = place; }
  });
  return best;
}
$("text").addEventListener("keydown", (event) => {
  const last = $("text").children.length - 1;
  const moves = {
    ArrowRight: () => Math.min(last, state.token + 1), ArrowLeft: () => Math.max(0, state.token - 1),
    ArrowDown: () => line(1), ArrowUp: () => line(-1), Home: () => 0, End: () => last };
  if (event.key in moves) { event.preventDefault(); chooseToken(moves[event.key](), true); }
  else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    const top = main(reads(state.text)[state.token]);
    if (top) chooseChapter(state.chapter === top[0] ? null : top[0]);
  } else if (event.key === "Escape") chooseChapter(null);
});
$("text").addEventListener("click", (event) => {
  const node = event.target.closest(".token");
  if (node) chooseToken([...$("text").children].indexOf(node), false);
});
$("chapters").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const buttons = [...$("chapters").querySelectorAll("button")], next = buttons[buttons.indexOf(document.activeElement) + step];
  if (step && next) { event.preventDefault(); next.focus(); }
  if (event.key === "Escape") chooseChapter(null);
});
$("more").addEventListener("click", () => { state.all = true; drawChapters(); });
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("pick-text").addEventListener("change", (event) => { state.text = Number(event.target.value); state.token = 0; drawText(); });
$("pick-colour").addEventListener("change", (event) => { state.colour = event.target.value; state.chapter = null; chooseChapter(null); });
$("pick-reader").addEventListener("change", (event) => {
  state.reader = Number(event.target.value); state.chapter = null;
  drawText(); drawChapters(); drawChapter(); drawNumbers();
});

$("about").textContent = data.about;
$("pick-text").append(...data.texts.map((text, at) => make("option", { value: at }, text.name)));
const labels = data.readers.map((each) => each.label);
if (data.mean) labels.push(data.mean.label);
$("pick-reader").append(...labels.map((label, at) => make("option", { value: at }, label)));
if (data.mean) { state.reader = data.readers.length; $("pick-reader").value = state.reader; }
drawText(); drawChapters(); drawNumbers();
document.documentElement.dataset.ready = performance.now().toFixed(0);
