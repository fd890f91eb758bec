// Shelves on the left, rows in the middle, the row under the cursor on the right.

const $ = id => document.getElementById(id);
const state = { shelf: null, rows: [], next: 0, total: 0, here: -1, chosen: new Set() };

async function ask(path, body) {
  const answer = await fetch(path, body && { method: "POST", body: JSON.stringify(body) });
  const found = await answer.json().catch(() => ({ error: `the server said ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error || `the server said ${answer.status}`);
  return found;
}

function say(text, wrong = false) {
  $("said").value = text;
  $("said").classList.toggle("error", wrong);
}

function guarded(work) {
  return (...given) => work(...given).catch(error => say(error.message, true));
}

function element(name, properties = {}, ...inside) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...inside);
  return made;
}

function picture(row) {
  return element("img", { src: `picture/${row.blob}`, alt: row.about?.label ?? row.id, loading: "lazy" });
}

const showShelves = guarded(async () => {
  const shelves = await ask("shelves");
  $("shelves").replaceChildren(...shelves.map(shelf => {
    const button = element("button", { title: shelf.title }, shelf.title, element("small", {}, String(shelf.rows)));
    button.setAttribute("aria-current", String(shelf.name === state.shelf));
    button.addEventListener("click", () => open(shelf));
    return element("li", {}, button);
  }));
  if (!shelves.length) say("nothing to look at yet; run some tasks first");
});

const open = guarded(async shelf => {
  Object.assign(state, { shelf: shelf.name, rows: [], next: 0, here: -1 });
  state.chosen.clear();
  $("title").textContent = shelf.title;
  $("rows").replaceChildren();
  await more();
  showShelves();
  go(0);
});

const more = guarded(async () => {
  const found = await ask(`rows?shelf=${encodeURIComponent(state.shelf)}&start=${state.next}`);
  for (const row of found.rows) {
    const place = state.rows.push(row) - 1;
    $("rows").append(card(row, place));
  }
  Object.assign(state, { next: found.next, total: found.total });
  $("more").hidden = state.next >= state.total;
  say(`${state.rows.length} of ${state.total}`);
});

function card(row, place) {
  const inside = row.beside ? element("div", { className: "pair" }, picture(row), picture(row.beside)) : picture(row);
  const made = element("div", { className: "row", tabIndex: -1 }, inside, element("p", {}, row.about.label ?? row.id));
  made.setAttribute("role", "option");
  made.dataset.place = place;
  made.addEventListener("click", event => { go(place); if (event.shiftKey || event.ctrlKey || event.metaKey) choose(); });
  mark(made, row);
  return made;
}

function mark(made, row) {
  made.classList.toggle("keep", row.review?.keep === true);
  made.classList.toggle("drop", row.review?.keep === false);
  made.setAttribute("aria-selected", String(state.chosen.has(row.id)));
}

function cards() {
  return [...$("rows").children];
}

function go(place) {
  if (!state.rows.length) return about(null);
  cards()[state.here]?.classList.remove("here");
  state.here = Math.max(0, Math.min(place, state.rows.length - 1));
  const made = cards()[state.here];
  made.classList.add("here");
  made.scrollIntoView({ block: "nearest" });
  if (document.activeElement !== $("note")) made.focus({ preventScroll: true });
  about(state.rows[state.here]);
}

function choose() {
  const row = state.rows[state.here];
  if (!row) return;
  if (!state.chosen.delete(row.id)) state.chosen.add(row.id);
  mark(cards()[state.here], row);
}

function chooseAll(yes) {
  state.chosen = new Set(yes ? state.rows.map(row => row.id) : []);
  cards().forEach((made, place) => mark(made, state.rows[place]));
}

function table(values) {
  return element("table", {}, ...Object.entries(values).map(([name, value]) => {
    const text = typeof value === "number" ? String(Math.round(value * 1e4) / 1e4) : String(value);
    return element("tr", {}, element("td", {}, name), element("td", {}, text));
  }));
}

function about(row) {
  if (!row) return $("about").replaceChildren();
  const parts = [picture(row), element("h3", {}, row.id), table(row.about)];
  if (row.dropped) parts.push(element("p", {}, `dropped by ${row.dropped[0]}: ${row.dropped[1]}`));
  if (row.beside) parts.push(element("h3", {}, `kept instead: ${row.beside.id}`), picture(row.beside));
  for (const [name, text] of Object.entries(row.captions)) parts.push(element("h3", {}, name), element("p", {}, text));
  if (Object.keys(row.numbers).length) parts.push(element("h3", {}, "measured"), table(row.numbers));
  if (row.review) parts.push(element("p", {}, `${row.review.keep ? "kept" : "dropped"} by a person`
    + (row.review.note ? `: ${row.review.note}` : "")));
  $("about").replaceChildren(...parts);
}

const decide = guarded(async keep => {
  const several = state.chosen.size > 0;
  const ids = several ? [...state.chosen] : state.here >= 0 ? [state.rows[state.here].id] : [];
  if (!ids.length) return;
  chooseAll(false);
  go(several ? state.here : state.here + 1); // at once: who types fast is not held up by the server
  const { rows } = await ask("decide", { ids, keep, note: $("note").value });
  const fresh = new Map(rows.map(row => [row.id, row]));
  state.rows.forEach((row, place) => {
    if (!fresh.has(row.id)) return;
    state.rows[place] = { ...fresh.get(row.id), beside: row.beside };
    mark(cards()[place], state.rows[place]);
  });
  about(state.rows[state.here]);
  say(`${keep ? "kept" : "dropped"} ${ids.length}`);
  showShelves();
});

const keys = {
  ArrowRight: () => go(state.here + 1), ArrowLeft: () => go(state.here - 1),
  k: () => decide(true), d: () => decide(false), " ": choose, a: () => chooseAll(true), Escape: () => chooseAll(false),
};
document.addEventListener("keydown", event => {
  if (event.target === $("note") || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
  if (event.target.tagName === "BUTTON" && event.key === " ") return;
  event.preventDefault();
  keys[event.key]();
});
$("keep").addEventListener("click", () => decide(true));
$("drop").addEventListener("click", () => decide(false));
$("more").addEventListener("click", more);
showShelves();
