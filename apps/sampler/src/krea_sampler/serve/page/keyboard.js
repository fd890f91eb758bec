// Keys: everything that the mouse can do.

import { go } from "./address.js";
import { $, attempt, say } from "./dom.js";
import { choose, leaveBetween, more, startBetween, takeBack, takeDown } from "./explore.js";
import { copy, keep } from "./files.js";
import { look, pick } from "./picked.js";
import { state } from "./state.js";

function move(key) {
  const tiles = $("board").children;
  const columns = getComputedStyle($("board")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const next = state.picked === null ? 0 : state.picked + step;
  if (next < 0 || next >= tiles.length) return;
  pick(next);
  tiles[next].focus({ preventScroll: $("view").open });
  tiles[next].scrollIntoView({ block: "nearest" });
}

function neighbour(step) {
  const next = state.order[state.order.indexOf(state.current) + step];
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

export function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (event.key === "Escape") {
    if (event.target.matches("input, textarea")) event.target.blur();
    return leaveBetween();
  }
  if (event.target.matches("input, textarea") || $("keys").open) return;
  if (event.key.startsWith("Arrow") && state.boards.has(state.current)) {
    event.preventDefault();
    return move(event.key);
  }
  const tile = event.target.closest(".tile");
  if ((event.key === "Enter" || event.key === " ") && tile) {
    event.preventDefault();
    const number = Number(tile.dataset.number);
    if (state.first || number !== state.picked || event.key === " ") return choose(number, false);
    return attempt(more);
  }
  const action = anywhere[event.key] ?? (state.picked === null ? undefined : onPicked[event.key]);
  if (!action) return;
  event.preventDefault();
  attempt(action);
}
