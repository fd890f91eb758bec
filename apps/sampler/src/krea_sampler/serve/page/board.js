// The board that is shown: its tiles, as wide as the window allows.

import { $, element } from "./dom.js";
import { portray } from "./picked.js";
import { describe, shown, source, state } from "./state.js";

const narrow = matchMedia("(max-width: 760px)");

export function build(id) {
  state.current = id;
  state.picked = null;
  const tiles = shown()?.tiles ?? [];
  $("board").replaceChildren(...tiles.map((_, number) => blank(number)));
  tiles.forEach((_, number) => draw(number));
  fit();
}

function blank(number) {
  const tile = element("div", { className: "tile", role: "option", tabIndex: number ? -1 : 0 });
  tile.dataset.number = number;
  tile.append(element("div", { className: "frame" }), element("span", { className: "caption" }));
  return tile;
}

export function paint(id, numbers) {
  if (id !== state.current) return;
  if ($("board").children.length !== shown().tiles.length) build(id);
  for (const number of numbers) draw(Number(number));
  if (state.picked !== null && numbers.includes(String(state.picked))) portray();
}

export function draw(number) {
  const tile = shown().tiles[number];
  const node = $("board").children[number];
  const mine = state.first?.board === state.current && state.first.tile === number;
  node.className = `tile ${tile.state}${tile.kept ? " kept" : ""}${mine ? " first" : ""}`;
  node.setAttribute("aria-label", describe(tile, number));
  node.setAttribute("aria-selected", String(number === state.picked));
  node.lastChild.textContent = tile.state === "failed" ? tile.error : tile.caption;
  node.title = tile.error;
  const box = node.firstChild;
  box.style.aspectRatio = `${tile.width_px} / ${tile.height_px}`;
  show(box, source(state.current, number), tile.state === "drawing" ? tile.step / tile.steps : 0);
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

// The widest tiles with which the whole board fits into the window
export function fit() {
  const board = shown();
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
