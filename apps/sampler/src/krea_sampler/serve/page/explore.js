// Asking for boards: of a prompt, more like one, between two, toward other words; and taking them back.

import { go } from "./address.js";
import { post } from "./api.js";
import { draw, fit } from "./board.js";
import { $, attempt, say } from "./dom.js";
import { frame } from "./frame.js";
import { pick } from "./picked.js";
import { given, size, unfold } from "./settings.js";
import { here, pickedTile, source, state } from "./state.js";

async function ask(body) {
  const before = here();
  const { id } = await post("/api/boards", body);
  state.undo.push({
    what: "Board taken down",
    act: async () => {
      const seen = state.current === id; // the stream may tell of the removal before the answer does
      state.gone.add(id);
      await post(`/api/boards/${id}/remove`);
      if (seen) go(before.board, before.tile);
    },
  });
  if (body.kind !== "draw") leaveBetween(); // the other picture may be one that is yet to be drawn
  state.asked = state.order.includes(id) ? "" : id;
  go(id, body.kind === "draw" ? null : 0);
}

export function drawPrompt() {
  const seed = $("seed").value.trim();
  return ask({ kind: "draw", prompt: $("prompt").value, count: size(), ...(seed && { seed }), ...given() });
}

export const more = () => ask({ kind: "more", of: here(), distance: Number($("distance").value), count: size() });

export const toward = () => ask({ kind: "toward", of: here(), prompt: $("words").value, count: size() });

export const repeat = (parameters) => ask({ kind: "repeat", parameters });

export function redraw() {
  const settings = given();
  const tile = pickedTile();
  if (Object.entries(settings).every(([name, value]) => tile[name] === value)) {
    unfold(true);
    $("steps").focus();
    throw new Error("Change steps, guidance or size under Settings first; with the same it would be the same picture.");
  }
  return ask({ kind: "repeat", of: here(), ...settings });
}

export function startBetween() {
  if (state.first) return leaveBetween();
  state.first = here();
  document.body.classList.add("picking");
  $("between").textContent = "Leave it";
  $("end").src = source(state.current, state.picked);
  $("mode").hidden = false;
  draw(state.picked);
  fit();
}

export function leaveBetween() {
  if (!state.first) return;
  const { board, tile } = state.first;
  state.first = null;
  document.body.classList.remove("picking");
  $("mode").hidden = true;
  fit();
  $("between").textContent = "Between\u2026";
  if (board === state.current) draw(tile);
}

// Picks a tile, or goes to it from the first one. `second`: it is meant as the other end.
export function choose(number, second) {
  const { current, picked } = state;
  if (second && !state.first && picked !== null && picked !== number) state.first = here();
  const { first } = state;
  if (!first || (first.board === current && first.tile === number)) return pick(number);
  attempt(() => ask({ kind: "between", of: first, to: { board: current, tile: number }, count: size() }));
}

export async function takeDown() {
  const id = state.current;
  const at = state.order.indexOf(id);
  const next = state.order[at - 1] ?? state.order[at + 1] ?? "";
  state.gone.add(id);
  await post(`/api/boards/${id}/remove`);
  state.undo.push({ what: "Board put back", act: async () => { await post(`/api/boards/${id}/restore`); go(id); } });
  go(next);
  say("Board taken down; u puts it back");
}

export async function takeBack() {
  const last = state.undo.pop();
  if (!last) return;
  await last.act();
  say(last.what);
  frame();
}
