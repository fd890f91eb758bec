// What the server tells and what the address says, brought together: the board that is shown.

import { linked, place } from "./address.js";
import { build, paint } from "./board.js";
import { $, trouble } from "./dom.js";
import { frame, measure } from "./frame.js";
import { pick } from "./picked.js";
import { leading, shown, state } from "./state.js";

export function merge(event) {
  if (event.run !== state.run) begin(event);
  for (const change of event.boards) {
    const board = state.boards.get(change.id) ?? { ...change, tiles: [] };
    board.count = change.count;
    for (const [number, tile] of Object.entries(change.tiles)) {
      board.tiles[number] = { ...tile, details: board.tiles[number]?.details };
    }
    state.boards.set(change.id, board);
  }
  const { boards, current } = state;
  state.order = event.order.filter((id) => boards.get(id)?.count > 0);
  measure(event.boards.map((board) => board.id));
  if (!state.order.includes(current) || (linked() !== current && state.order.includes(linked()))) follow();
  for (const change of event.boards) paint(change.id, Object.keys(change.tiles));
  frame();
}

function begin(event) {
  state.boards.clear();
  state.undo.length = 0;
  state.asked = "";
  state.run = event.run;
  // with boards to look at, keys are for them; what is being typed is left alone
  if (event.boards.some((board) => board.count) && !$("prompt").value) $("prompt").blur();
}

export function follow() {
  const [id, tile] = location.hash.slice(1).split("/");
  const known = state.order.includes(id);
  if (!known && id && (id === state.asked || !state.run)) return; // the stream has yet to bring it
  if (known) state.asked = "";
  else if (id && !state.gone.has(id)) trouble("That board is no longer in the server's memory; this is the newest.");
  const next = known ? id : (state.order.at(-1) ?? "");
  const number = known && /^\d+$/.test(tile ?? "") && Number(tile) < state.boards.get(id).count ? Number(tile) : null;
  if (!known) history.replaceState(null, "", next ? place(next) : location.pathname);
  if (next !== state.current) {
    const prompt = $("prompt"); // what was typed and not drawn stays
    const untouched = !prompt.value.trim() || prompt.value === leading(shown());
    if (untouched) prompt.value = leading(state.boards.get(next)) || prompt.value;
    build(next);
  }
  pick(number, false);
  frame();
}
