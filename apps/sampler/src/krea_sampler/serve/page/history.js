// All boards, newest first, each as a small mosaic.

import { go } from "./address.js";
import { $, element } from "./dom.js";
import { count, source, state } from "./state.js";

export function remember() {
  const items = state.order.toReversed().map(entry);
  const list = $("history");
  if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) list.replaceChildren(...items);
}

function entry(id) {
  const item = document.querySelector(`#history [data-id="${id}"]`) ?? blank(id);
  const board = state.boards.get(id);
  tessellate(item.querySelector(".mosaic"), board);
  const open = count(board, "waiting", "drawing");
  item.querySelector(".name").textContent = open ? `${board.count - open} of ${board.count}` : board.title;
  const button = item.firstChild;
  button.title = board.title;
  if (id === state.current) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  return item;
}

function blank(id) {
  const item = element("li", {});
  item.dataset.id = id;
  const button = element("button", { type: "button" });
  button.append(element("span", { className: "mosaic" }), element("span", { className: "name" }));
  button.onclick = () => go(id, null);
  item.append(button);
  return item;
}

function tessellate(mosaic, board) {
  const few = board.tiles.length < 4 ? board.tiles.slice(0, 1) : spread(board);
  mosaic.classList.toggle("one", few.length === 1);
  while (mosaic.children.length > few.length) mosaic.lastChild.remove();
  few.forEach((tile, i) => {
    const src = source(board.id, board.tiles.indexOf(tile));
    const node = mosaic.children[i];
    if (src && node?.getAttribute("src") === src) return;
    const fresh = src ? element("img", { src, alt: "" }) : element("span", {});
    if (node) node.replaceWith(fresh);
    else mosaic.append(fresh);
  });
}

// Four pictures that stand for a board: of a way from one to another its ends and what lies between
function spread(board) {
  const far = board.kind === "between" || board.kind === "toward";
  const last = board.count - 1;
  return (far ? [0, Math.round(last / 3), Math.round((2 * last) / 3), last] : [0, 1, 2, 3]).map((i) => board.tiles[i]);
}
