// Everything around the board: its title, where it comes from, how far it is.

import { place } from "./address.js";
import { $, element } from "./dom.js";
import { remember } from "./history.js";
import { count, reached, shown, source, state, total } from "./state.js";

const paces = new Map(); // board -> when it was first seen being drawn, and how far it was

// Notes when these boards begin and end being drawn.
export function measure(ids) {
  for (const board of ids.map((id) => state.boards.get(id))) {
    if (count(board, "drawing") && !paces.has(board.id)) paces.set(board.id, { since: performance.now(), from: reached(board) });
    if (!count(board, "drawing", "waiting")) paces.delete(board.id);
  }
}

function left(board) {
  const pace = paces.get(board.id);
  const rest = total(board, (tile) => (["waiting", "drawing"].includes(tile.state) ? tile.steps - tile.step : 0));
  const steps = pace ? reached(board) - pace.from : 0;
  if (steps < 3) return "";
  const seconds = (rest * (performance.now() - pace.since)) / steps / 1000;
  return seconds < 90 ? `, ${Math.max(1, Math.round(seconds))} s left` : `, ${Math.round(seconds / 60)} min left`;
}

export function frame() {
  const board = shown();
  $("empty").hidden = Boolean(board);
  $("board").hidden = !board;
  $("title").textContent = board?.title ?? "Nothing drawn yet";
  $("title").title = board?.title ?? "";
  document.title = board ? `${board.title} - krea-sample` : "krea-sample";
  origins(board);
  progress(board);
  $("remove").hidden = !board || board.kind === "kept";
  $("undo").hidden = !state.undo.length;
  remember();
}

function progress(board) {
  const open = board ? count(board, "waiting", "drawing") : 0;
  const done = board ? count(board, "done") : 0;
  $("progress").textContent = open ? `${done} of ${board.count}${left(board)}` : "";
  const said = spoken(board, open, done);
  if ($("spoken").textContent !== said) $("spoken").textContent = said;
  $("bar").classList.toggle("idle", !open);
  if (board) {
    const steps = total(board, (tile) => tile.steps);
    $("bar").firstElementChild.style.width = `${(100 * reached(board)) / Math.max(1, steps)}%`;
  }
  $("stop").hidden = !open;
  $("resume").hidden = !board || open > 0 || count(board, "stopped", "failed") === 0;
}

// Progress for those who listen: few words, seldom
function spoken(board, open, done) {
  if (!board) return "";
  if (!open) return `${done} of ${board.count} pictures are drawn`;
  return done * 2 >= board.count ? "Half of the pictures are drawn" : "Drawing";
}

// Where a board comes from, with links to the pictures it was made of
function origins(board) {
  const words = { more: "more like", between: "between", toward: "other words for", repeat: "again" }[board?.kind] ?? "";
  const parents = (board?.parents ?? []).filter(([id]) => state.order.includes(id));
  const now = `${board?.id} ${parents}`;
  if ($("from").dataset.now === now) return;
  $("from").dataset.now = now;
  const links = parents.map(([id, tile]) => {
    const link = element("a", { href: place(id, tile), title: "Go to it" });
    link.append(element("img", { src: source(id, tile), alt: state.boards.get(id).title }));
    return link;
  });
  const text = element("span", { textContent: parents.length || board?.kind === "repeat" ? words : "" });
  $("from").replaceChildren(text, ...links);
}
