// The page of `krea-sample serve`. The server holds the boards and tells of every change; this shows them and asks.

const $ = (id) => document.getElementById(id);
const boards = new Map(); // id -> board; its tiles are replaced as they change
let order = []; // ids of all boards, oldest first
let run = ""; // which server this is: after a restart everything is new
let about = { limits: {}, defaults: {} };
let current = ""; // the board that is shown
let picked = null; // number of the picked tile on it
let asked = ""; // a board that was asked for and may not be here yet
let first = null; // {board, tile}: one end, while the other is being picked
let stream = null;
const paces = new Map(); // board -> when it was first seen being drawn, and how far it was
const undo = [];
const gone = new Set(); // boards that were taken down here: nobody needs to be told that they are
const NUMBERS = ["steps", "guidance", "width_px", "height_px"];
const narrow = matchMedia("(max-width: 760px)");

// Talking to the server

async function post(path, body = {}) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

// Runs what a click asks for; whatever goes wrong is one sentence above the board.
async function attempt(action) {
  try {
    trouble("");
    await action();
  } catch (error) {
    trouble(error instanceof TypeError ? "The server does not answer. Is krea-sample serve still running?" : error.message);
  }
}

async function ask(body) {
  const before = { board: current, tile: picked };
  const { id } = await post("/api/boards", { ...body });
  undo.push({
    what: "Board taken down",
    act: async () => {
      const seen = current === id; // the stream may tell of the removal before the answer does
      gone.add(id);
      await post(`/api/boards/${id}/remove`);
      if (seen) go(before.board, before.tile);
    },
  });
  if (body.kind !== "draw") leaveBetween(); // the other picture may be one that is yet to be drawn
  asked = order.includes(id) ? "" : id;
  go(id, body.kind === "draw" ? null : 0);
}

function listen() {
  if (stream) return;
  stream = new EventSource("/api/events");
  stream.onmessage = (message) => merge(JSON.parse(message.data));
  stream.onerror = () => $("spoken").replaceChildren("Connection lost; trying again");
}

// A tab in the background lets go of its connection: browsers allow only six to one server.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) return listen();
  stream?.close();
  stream = null;
});

function merge(event) {
  if (event.run !== run) {
    boards.clear();
    undo.length = 0;
    asked = "";
    run = event.run;
    // with boards to look at, keys are for them; what is being typed is left alone
    if (event.boards.some((board) => board.count) && !$("prompt").value) $("prompt").blur();
  }
  for (const change of event.boards) {
    const board = boards.get(change.id) ?? { ...change, tiles: [] };
    board.count = change.count;
    for (const [number, tile] of Object.entries(change.tiles)) {
      board.tiles[number] = { ...tile, details: board.tiles[number]?.details };
    }
    boards.set(change.id, board);
  }
  order = event.order.filter((id) => boards.get(id)?.count > 0);
  measure(event.boards.map((board) => board.id));
  if (!order.includes(current) || (linked() !== current && order.includes(linked()))) follow();
  for (const change of event.boards) paint(change.id, Object.keys(change.tiles));
  frame();
}

// Where we are: #board/tile in the address, so that links, reloads and the back button work

const place = (board, tile) => `#${board}${tile === null || tile === undefined ? "" : `/${tile}`}`;

function go(board, tile = null) {
  if (place(board, tile) === location.hash) return follow();
  location.hash = place(board, tile);
}

const linked = () => location.hash.slice(1).split("/")[0];

function follow() {
  const [id, tile] = location.hash.slice(1).split("/");
  const known = order.includes(id);
  if (!known && id && (id === asked || !run)) return; // the stream has yet to bring it
  if (known) asked = "";
  else if (id && !gone.has(id)) trouble("That board is no longer in the server's memory; this is the newest.");
  const next = known ? id : (order.at(-1) ?? "");
  const number = known && /^\d+$/.test(tile ?? "") && Number(tile) < boards.get(id).count ? Number(tile) : null;
  if (!known) history.replaceState(null, "", next ? place(next) : location.pathname);
  if (next !== current) {
    const prompt = $("prompt"); // what was typed and not drawn stays
    const untouched = !prompt.value.trim() || prompt.value === leading(boards.get(current));
    if (untouched) prompt.value = leading(boards.get(next)) || prompt.value;
    build(next);
  }
  pick(number, false);
  frame();
}
addEventListener("hashchange", follow);

const leading = (board) => board?.tiles[0]?.prompts.toSorted((a, b) => b[1] - a[1])[0][0] ?? "";

// The board

function build(id) {
  current = id;
  picked = null;
  const board = boards.get(id);
  $("board").replaceChildren(...(board?.tiles ?? []).map((_, number) => blank(number)));
  board?.tiles.forEach((_, number) => draw(number));
  fit();
}

function blank(number) {
  const tile = element("div", { className: "tile", role: "option", tabIndex: number ? -1 : 0 });
  tile.dataset.number = number;
  tile.append(element("div", { className: "frame" }), element("span", { className: "caption" }));
  return tile;
}

function paint(id, numbers) {
  if (id !== current) return;
  if ($("board").children.length !== boards.get(id).tiles.length) build(id);
  for (const number of numbers) draw(Number(number));
  if (picked !== null && numbers.includes(String(picked))) portray();
}

function draw(number) {
  const tile = boards.get(current).tiles[number];
  const node = $("board").children[number];
  const mine = first && first.board === current && first.tile === number;
  node.className = `tile ${tile.state}${tile.kept ? " kept" : ""}${mine ? " first" : ""}`;
  node.setAttribute("aria-label", describe(tile, number));
  node.setAttribute("aria-selected", String(number === picked));
  node.lastChild.textContent = tile.state === "failed" ? tile.error : tile.caption;
  node.title = tile.error;
  node.firstChild.style.aspectRatio = `${tile.width_px} / ${tile.height_px}`;
  const box = node.firstChild;
  show(box, source(current, number), tile.state === "drawing" ? tile.step / tile.steps : 0);
}

function show(box, src, share) {
  let image = box.querySelector("img");
  if (!src) image?.remove();
  else {
    if (!image) box.prepend((image = element("img", { alt: "", draggable: false })));
    if (image.getAttribute("src") !== src) image.src = src;
  }
  let done = box.querySelector(".done");
  if (!share) done?.remove();
  else {
    if (!done) box.append((done = element("div", { className: "done" })));
    done.style.width = `${share * 100}%`;
  }
}

function source(id, number) {
  const tile = boards.get(id)?.tiles[number];
  return tile?.state === "done" ? `/api/boards/${id}/${number}.png` : tile?.preview || "";
}

function describe(tile, number) {
  const state = { waiting: "waiting", drawing: "being drawn", done: "", failed: tile.error, stopped: "stopped" }[tile.state];
  return [`Picture ${number + 1}`, tile.caption, state, tile.kept ? "kept" : ""].filter(Boolean).join(", ");
}

// The widest tiles with which the whole board fits into the window
function fit() {
  const board = boards.get(current);
  if (!board || narrow.matches) return;
  const area = document.querySelector("main");
  const gap = 12;
  const width = area.clientWidth - 32 + gap;
  const top = $("board").getBoundingClientRect().top - area.getBoundingClientRect().top + area.scrollTop;
  const height = area.clientHeight - top - 10 + gap;
  const largest = Math.max(256, ...board.tiles.map((tile) => tile.width_px));
  const shape = Math.min(...board.tiles.map((tile) => tile.width_px / tile.height_px));
  let best = { columns: 1, side: 0 };
  for (let columns = 1; columns <= board.count; columns++) {
    const high = height / Math.ceil(board.count / columns) - gap - 25;
    const side = Math.min(width / columns - gap, high * shape, largest);
    if (side >= best.side) best = { columns, side };
  }
  $("board").style.setProperty("--columns", best.columns);
  $("board").style.setProperty("--width", `${Math.max(96, Math.floor(best.side))}px`);
}
new ResizeObserver(fit).observe(document.querySelector("main"));

// Everything around the board: title, progress, history

const reached = (board) => total(board, (tile) => (tile.state === "done" ? tile.steps : tile.step));

function measure(ids) {
  for (const board of ids.map((id) => boards.get(id))) {
    if (count(board, "drawing") && !paces.has(board.id)) paces.set(board.id, { since: performance.now(), from: reached(board) });
    if (!count(board, "drawing", "waiting")) paces.delete(board.id);
  }
}

const total = (board, of) => board.tiles.reduce((sum, tile) => sum + of(tile), 0);
const count = (board, ...states) => board.tiles.filter((tile) => states.includes(tile.state)).length;

function left(board) {
  const pace = paces.get(board.id);
  const rest = total(board, (tile) => (["waiting", "drawing"].includes(tile.state) ? tile.steps - tile.step : 0));
  const steps = pace ? reached(board) - pace.from : 0;
  if (steps < 3) return "";
  const seconds = (rest * (performance.now() - pace.since)) / steps / 1000;
  return seconds < 90 ? `, ${Math.max(1, Math.round(seconds))} s left` : `, ${Math.round(seconds / 60)} min left`;
}

function frame() {
  const board = boards.get(current);
  $("empty").hidden = Boolean(board);
  $("board").hidden = !board;
  $("title").textContent = board?.title ?? "Nothing drawn yet";
  $("title").title = board?.title ?? "";
  document.title = board ? `${board.title} - krea-sample` : "krea-sample";
  origins(board);
  const open = board ? count(board, "waiting", "drawing") : 0;
  const done = board ? count(board, "done") : 0;
  $("progress").textContent = open ? `${done} of ${board.count}${left(board)}` : "";
  const spoken = !board ? "" : open ? (done * 2 >= board.count ? "Half of the pictures are drawn" : "Drawing") : `${done} of ${board.count} pictures are drawn`;
  if ($("spoken").textContent !== spoken) $("spoken").textContent = spoken;
  $("bar").classList.toggle("idle", !open);
  if (board) {
    const steps = total(board, (tile) => tile.steps);
    $("bar").firstElementChild.style.width = `${(100 * reached(board)) / Math.max(1, steps)}%`;
  }
  $("stop").hidden = !open;
  $("resume").hidden = !board || open > 0 || count(board, "stopped", "failed") === 0;
  $("remove").hidden = !board || board.kind === "kept";
  $("undo").hidden = !undo.length;
  remember();
}

// Where a board comes from, with links to the pictures it was made of
function origins(board) {
  const words = { more: "more like", between: "between", toward: "other words for", repeat: "again" }[board?.kind] ?? "";
  const parents = (board?.parents ?? []).filter(([id]) => order.includes(id));
  const now = `${board?.id} ${parents}`;
  if ($("from").dataset.now === now) return;
  $("from").dataset.now = now;
  const links = parents.map(([id, tile]) => {
    const link = element("a", { href: place(id, tile), title: "Go to it" });
    link.append(element("img", { src: source(id, tile), alt: boards.get(id).title }));
    return link;
  });
  const text = element("span", { textContent: parents.length || board?.kind === "repeat" ? words : "" });
  $("from").replaceChildren(text, ...links);
}

function remember() {
  const items = order.toReversed().map((id) => {
    const old = document.querySelector(`#history [data-id="${id}"]`);
    const item = old ?? thumb(id);
    const board = boards.get(id);
    const few = board.tiles.length < 4 ? board.tiles.slice(0, 1) : spread(board);
    const mosaic = item.querySelector(".mosaic");
    mosaic.classList.toggle("one", few.length === 1);
    while (mosaic.children.length > few.length) mosaic.lastChild.remove();
    few.forEach((tile, i) => {
      const src = source(id, board.tiles.indexOf(tile));
      const node = mosaic.children[i];
      if (src && node?.getAttribute("src") === src) return;
      const fresh = src ? element("img", { src, alt: "" }) : element("span", {});
      if (node) node.replaceWith(fresh);
      else mosaic.append(fresh);
    });
    const open = count(board, "waiting", "drawing");
    item.querySelector(".name").textContent = open ? `${board.count - open} of ${board.count}` : board.title;
    const button = item.firstChild;
    button.title = board.title;
    if (id === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    return item;
  });
  const list = $("history");
  if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) list.replaceChildren(...items);
}

// Four pictures that stand for a board: of a way from one to another its ends and what lies between
function spread(board) {
  const far = board.kind === "between" || board.kind === "toward";
  const last = board.count - 1;
  return (far ? [0, Math.round(last / 3), Math.round((2 * last) / 3), last] : [0, 1, 2, 3]).map((i) => board.tiles[i]);
}

function thumb(id) {
  const item = element("li", {});
  item.dataset.id = id;
  const button = element("button", { type: "button" });
  button.append(element("span", { className: "mosaic" }), element("span", { className: "name" }));
  button.onclick = () => go(id, null);
  item.append(button);
  return item;
}

// The picked picture

function pick(number, moves = true) {
  const before = picked;
  picked = number;
  if (moves) history.replaceState(null, "", place(current, number));
  for (const one of new Set([before, number])) {
    const node = one === null ? null : $("board").children[one];
    if (!node) continue;
    node.setAttribute("aria-selected", String(one === number));
    node.tabIndex = one === number ? 0 : -1;
  }
  const board = boards.get(current);
  if (board && number === null && $("board").firstChild) $("board").firstChild.tabIndex = 0;
  $("picked").hidden = !board;
  $("picked").classList.toggle("none", number === null);
  portray();
}

function portray() {
  const board = boards.get(current);
  const tile = picked === null ? null : board?.tiles[picked];
  if (!tile) return;
  const src = source(current, picked);
  const portrait = $("portrait");
  if (src) portrait.src = src;
  else portrait.removeAttribute("src");
  portrait.alt = describe(tile, picked);
  portrait.style.aspectRatio = Math.max(1, tile.width_px / tile.height_px);
  if ($("view").open) look();
  $("recipe").replaceChildren(...recipe(tile));
  const done = tile.state === "done";
  for (const id of ["keep", "command", "json"]) $(id).disabled = !done;
  $("keep").textContent = tile.kept ? "Kept" : "Keep";
  $("keep").title = tile.kept ? `Kept as ${tile.kept}` : "Save it in the folder of kept pictures (k)";
  const link = $("download");
  if (done) link.href = `${src}?download`;
  else link.removeAttribute("href");
  if (done && !tile.details) fetchDetails(current, picked);
}

// Fetched when a picture is picked, so that copying is at once: browsers allow it only within a click.
async function fetchDetails(id, number) {
  const answer = await fetch(`/api/boards/${id}/${number}`);
  if (answer.ok) boards.get(id).tiles[number].details = await answer.json();
}

function recipe(tile) {
  const percent = (share) => `${Math.round(share * 100)} %`;
  const parts = tile.prompts.map(([prompt, weight]) =>
    element("p", { textContent: tile.prompts.length > 1 ? `${percent(weight)} ${prompt}` : prompt }),
  );
  if (tile.prompts.length > 1) parts.unshift(shares(tile.prompts.map(([, weight]) => weight)));
  const mixed = tile.seeds.length + tile.more_seeds > 1;
  if (mixed) parts.push(shares(tile.seeds.map(([, share]) => share)));
  const named = tile.seeds.map(([seed, share]) => (mixed ? `${percent(share)} seed ${seed}` : `seed ${seed}`));
  if (tile.more_seeds) named.push(`${tile.more_seeds} more`);
  parts.push(element("p", { className: "quiet", textContent: named.join(", ") }));
  const settings = `${tile.steps} steps, guidance ${tile.guidance}, ${tile.width_px} \u00d7 ${tile.height_px} px`;
  parts.push(element("p", { className: "quiet", textContent: settings }));
  if (tile.negative) parts.push(element("p", { className: "quiet", textContent: `away from ${tile.negative}` }));
  if (tile.note) parts.push(element("p", { className: "trouble", textContent: tile.note }));
  return parts;
}

function shares(weights) {
  const bar = element("div", { className: "shares" });
  bar.setAttribute("aria-hidden", "true");
  for (const weight of weights) {
    const part = element("span", {});
    part.style.flexGrow = weight;
    bar.append(part);
  }
  return bar;
}

const here = () => ({ board: current, tile: picked });
const size = () => Number($("count").value) || 12;

const more = () => attempt(() => ask({ kind: "more", of: here(), distance: Number($("distance").value), count: size() }));

function startBetween() {
  if (first) return leaveBetween();
  first = here();
  document.body.classList.add("picking");
  $("between").textContent = "Leave it";
  $("end").src = source(current, picked);
  $("mode").hidden = false;
  draw(picked);
  fit();
}

function leaveBetween() {
  if (!first) return;
  const { board, tile } = first;
  first = null;
  document.body.classList.remove("picking");
  $("mode").hidden = true;
  fit();
  $("between").textContent = "Between\u2026";
  if (board === current) draw(tile);
}

const between = (tile) => attempt(() => ask({ kind: "between", of: first, to: { board: current, tile }, count: size() }));

function choose(number, second) {
  if (second && !first && picked !== null && picked !== number) first = here();
  if (first && !(first.board === current && first.tile === number)) return between(number);
  pick(number);
}

async function keep() {
  const { kept } = await post(`/api/boards/${current}/${picked}/keep`);
  say(`Kept as ${kept}`);
}

async function copy(what) {
  const { details } = boards.get(current).tiles[picked];
  if (!details) throw new Error("The parameters are on their way; try again in a moment.");
  const text = details[what];
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // without https only this machine's own address may use the clipboard; the old way works everywhere
    const area = element("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    if (!copied) throw new Error("This browser does not let the page copy.");
  }
  say(what === "command" ? "Command copied" : "JSON copied");
}

function look() {
  const src = source(current, picked);
  if (!src) return;
  $("whole").src = src;
  $("whole").alt = $("portrait").alt;
  if (!$("view").open) $("view").showModal();
}

async function takeDown() {
  const id = current;
  const at = order.indexOf(id);
  const next = order[at - 1] ?? order[at + 1] ?? "";
  gone.add(id);
  await post(`/api/boards/${id}/remove`);
  undo.push({ what: "Board put back", act: async () => { await post(`/api/boards/${id}/restore`); go(id); } });
  go(next);
  say("Board taken down; u puts it back");
}

async function takeBack() {
  const last = undo.pop();
  if (!last) return;
  await last.act();
  say(last.what);
  frame();
}

// The PNGs of krea-sample hold their parameters in a text chunk; only that text is sent.
async function openPicture(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const data = new DataView(bytes.buffer);
  const text = new TextDecoder();
  for (let at = 8; at + 12 <= bytes.length; at += 12 + data.getUint32(at)) {
    const body = bytes.subarray(at + 8, at + 8 + data.getUint32(at));
    const kind = text.decode(bytes.subarray(at + 4, at + 8));
    if (kind !== "iTXt" || text.decode(body.subarray(0, 5)) !== "krea\0" || body[5] !== 0) continue;
    const language = body.indexOf(0, 7);
    const parameters = text.decode(body.subarray(body.indexOf(0, language + 1) + 1));
    return ask({ kind: "repeat", parameters });
  }
  throw new Error(`${file.name} holds no parameters of krea-sample; only its own PNGs can be opened.`);
}

function changes() {
  const given = {};
  for (const name of NUMBERS) if ($(name).value !== "") given[name] = Number($(name).value);
  if ($("negative").value.trim()) given.negative = $("negative").value.trim();
  return given;
}

function redraw() {
  const given = changes();
  const tile = boards.get(current).tiles[picked];
  if (Object.entries(given).every(([name, value]) => tile[name] === value)) {
    unfold(true);
    $("steps").focus();
    throw new Error("Change steps, guidance or size under Settings first; with the same it would be the same picture.");
  }
  return ask({ kind: "repeat", of: here(), ...given });
}

function unfold(open) {
  $("fields").hidden = !open;
  $("settings").setAttribute("aria-expanded", String(open));
  fit();
}

// Words on the page

let fading = 0;
function say(text) {
  $("said").textContent = text;
  $("said").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => $("said").classList.remove("shown"), 2600);
}

function trouble(text) {
  const sentence = /^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  $("trouble").hidden = !text;
  $("trouble").textContent = sentence && !/[.?!]$/.test(sentence) ? `${sentence}.` : sentence;
}

function element(name, properties) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  return node;
}

// Hands

const onClick = (id, action) => { $(id).onclick = () => attempt(action); };
onClick("more", more);
onClick("between", startBetween);
onClick("leave", leaveBetween);
onClick("keep", keep);
onClick("command", () => copy("command"));
onClick("json", () => copy("parameters"));
onClick("again", redraw);
onClick("large", look);
onClick("stop", () => post(`/api/boards/${current}/stop`));
onClick("resume", () => post(`/api/boards/${current}/resume`));
onClick("remove", takeDown);
onClick("undo", takeBack);
onClick("unfold", () => {
  const open = $("picked").classList.toggle("unfolded");
  $("unfold").setAttribute("aria-expanded", String(open));
});
onClick("settings", () => unfold($("fields").hidden));
onClick("help", () => $("keys").showModal());
onClick("open", () => $("file").click());
onClick("view", () => $("view").close());
$("file").onchange = () => attempt(async () => {
  const [file] = $("file").files;
  if (file) await openPicture(file);
  $("file").value = "";
});

$("ask").onsubmit = (event) => {
  event.preventDefault();
  const seed = $("seed").value.trim();
  attempt(() => ask({ kind: "draw", prompt: $("prompt").value, count: size(), ...(seed && { seed }), ...changes() }));
};
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
};
$("toward").onsubmit = (event) => {
  event.preventDefault();
  attempt(() => ask({ kind: "toward", of: here(), prompt: $("words").value, count: size() }));
};

const numberOf = (event) => {
  const tile = event.target.closest(".tile");
  return tile ? Number(tile.dataset.number) : null;
};
$("board").onclick = (event) => {
  const number = numberOf(event);
  if (number !== null) choose(number, event.shiftKey);
};
$("board").ondblclick = (event) => {
  if (numberOf(event) !== null && picked !== null && !first) more();
};

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) attempt(() => openPicture(file));
});

function move(key) {
  const columns = getComputedStyle($("board")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = picked === null ? 0 : picked + step;
  if (next < 0 || next >= $("board").children.length) return;
  pick(next);
  $("board").children[next].focus({ preventScroll: $("view").open });
  $("board").children[next].scrollIntoView({ block: "nearest" });
}

function neighbour(step) {
  const next = order[order.indexOf(current) + step];
  if (next) go(next);
}

function nudge(step) {
  $("distance").value = Number($("distance").value) + step;
  say(`Distance ${Math.round(Number($("distance").value) * 100)} %`);
}

const anywhere = {
  "/": () => { $("prompt").focus(); $("prompt").select(); },
  "?": () => $("keys").showModal(),
  "[": () => neighbour(-1),
  "]": () => neighbour(1),
  u: takeBack,
  x: () => $("remove").hidden || takeDown(),
  ",": () => nudge(-0.05),
  ".": () => nudge(0.05),
};
const onPicked = {
  b: startBetween,
  t: () => $("words").focus(),
  v: look,
  k: keep,
  d: () => $("download").click(),
  c: () => copy("command"),
  j: () => copy("parameters"),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape") {
    if (event.target.matches("input, textarea")) event.target.blur();
    return leaveBetween();
  }
  if (event.target.matches("input, textarea") || $("keys").open) return;
  const tile = event.target.closest(".tile");
  if (event.key.startsWith("Arrow") && boards.has(current)) {
    event.preventDefault();
    return move(event.key);
  }
  if ((event.key === "Enter" || event.key === " ") && tile) {
    event.preventDefault();
    const number = Number(tile.dataset.number);
    if (first || number !== picked || event.key === " ") return choose(number, false);
    return more();
  }
  const action = anywhere[event.key] ?? (picked === null ? undefined : onPicked[event.key]);
  if (!action) return;
  event.preventDefault();
  attempt(action);
});

// Beginning

attempt(async () => {
  about = await (await fetch("/api/about")).json();
  for (const name of NUMBERS) $(name).placeholder = about.defaults[name];
  $("steps").max = about.limits.steps;
  for (const name of ["width_px", "height_px"]) {
    $(name).max = about.limits.side_px;
    $(name).step = $(name).min = about.unit;
  }
  $("count").max = about.limits.count;
  $("model").textContent = about.model;
  if (!document.hidden) listen();
});
