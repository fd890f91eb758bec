// The picked picture: large, with what it was made of.

import { place } from "./address.js";
import { fetchDetails } from "./api.js";
import { $, element } from "./dom.js";
import { describe, pickedTile, shown, source, state } from "./state.js";

export function pick(number, moves = true) {
  const before = state.picked;
  state.picked = number;
  if (moves) history.replaceState(null, "", place(state.current, number));
  for (const one of new Set([before, number])) {
    const node = one === null ? null : $("board").children[one];
    if (!node) continue;
    node.setAttribute("aria-selected", String(one === number));
    node.tabIndex = one === number ? 0 : -1;
  }
  if (number === null && $("board").firstChild) $("board").firstChild.tabIndex = 0;
  $("picked").hidden = !shown();
  $("picked").classList.toggle("none", number === null);
  portray();
}

export function portray() {
  const tile = pickedTile();
  if (!tile) return;
  const src = source(state.current, state.picked);
  const portrait = $("portrait");
  if (src) portrait.src = src;
  else portrait.removeAttribute("src");
  portrait.alt = describe(tile, state.picked);
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
  if (done && !tile.details) remember(state.current, state.picked);
}

// Fetched when a picture is picked, so that copying is at once: browsers allow it only within a click.
async function remember(id, number) {
  const details = await fetchDetails(id, number);
  const tile = state.boards.get(id)?.tiles[number];
  if (details && tile) tile.details = details;
}

export function look() {
  const src = source(state.current, state.picked);
  if (!src) return;
  $("whole").src = src;
  $("whole").alt = $("portrait").alt;
  if (!$("view").open) $("view").showModal();
}

function recipe(tile) {
  const percent = (share) => `${Math.round(share * 100)} %`;
  const quiet = (textContent) => element("p", { className: "quiet", textContent });
  const parts = tile.prompts.map(([prompt, weight]) =>
    element("p", { textContent: tile.prompts.length > 1 ? `${percent(weight)} ${prompt}` : prompt }),
  );
  if (tile.prompts.length > 1) parts.unshift(shares(tile.prompts.map(([, weight]) => weight)));
  const mixed = tile.seeds.length + tile.more_seeds > 1;
  if (mixed) parts.push(shares(tile.seeds.map(([, share]) => share)));
  const named = tile.seeds.map(([seed, share]) => (mixed ? `${percent(share)} seed ${seed}` : `seed ${seed}`));
  if (tile.more_seeds) named.push(`${tile.more_seeds} more`);
  parts.push(quiet(named.join(", ")));
  parts.push(quiet(`${tile.steps} steps, guidance ${tile.guidance}, ${tile.width_px} \u00d7 ${tile.height_px} px`));
  if (tile.negative) parts.push(quiet(`away from ${tile.negative}`));
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
