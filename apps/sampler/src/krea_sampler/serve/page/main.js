// The page of `krea-sample serve`: which hand does what, and how it begins.

import { fetchAbout, listen, post } from "./api.js";
import { fit } from "./board.js";
import { follow, merge } from "./changes.js";
import { $, attempt } from "./dom.js";
import { choose, drawPrompt, leaveBetween, more, redraw, startBetween, takeBack, takeDown, toward } from "./explore.js";
import { copy, keep, openPicture } from "./files.js";
import { onKey } from "./keyboard.js";
import { look } from "./picked.js";
import { prepare, unfold } from "./settings.js";
import { state } from "./state.js";

const clicks = {
  more,
  between: startBetween,
  leave: leaveBetween,
  keep,
  command: () => copy("command"),
  json: () => copy("parameters"),
  again: redraw,
  large: look,
  stop: () => post(`/api/boards/${state.current}/stop`),
  resume: () => post(`/api/boards/${state.current}/resume`),
  remove: takeDown,
  undo: takeBack,
  unfold: () => {
    const open = $("picked").classList.toggle("unfolded");
    $("unfold").setAttribute("aria-expanded", String(open));
  },
  settings: () => unfold($("fields").hidden),
  help: () => $("keys").showModal(),
  open: () => $("file").click(),
  view: () => $("view").close(),
};
for (const [id, action] of Object.entries(clicks)) $(id).onclick = () => attempt(action);

$("file").onchange = () => attempt(async () => {
  const [file] = $("file").files;
  if (file) await openPicture(file);
  $("file").value = "";
});
for (const [id, action] of [["ask", drawPrompt], ["toward", toward]]) {
  $(id).onsubmit = (event) => {
    event.preventDefault();
    attempt(action);
  };
}
$("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
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
  if (numberOf(event) !== null && state.picked !== null && !state.first) attempt(more);
};

addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) attempt(() => openPicture(file));
});
addEventListener("keydown", onKey);
addEventListener("hashchange", follow);
new ResizeObserver(fit).observe(document.querySelector("main"));

attempt(async () => {
  prepare(await fetchAbout());
  listen(merge);
});
