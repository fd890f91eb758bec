// The fields under Settings.

import { fit } from "./board.js";
import { $ } from "./dom.js";

const NUMBERS = ["steps", "guidance", "width_px", "height_px"];

export function prepare(about) {
  for (const name of NUMBERS) $(name).placeholder = about.defaults[name];
  $("steps").max = about.limits.steps;
  $("guidance").max = about.limits.guidance;
  for (const name of ["width_px", "height_px"]) {
    $(name).max = about.limits.side_px;
    $(name).step = $(name).min = about.unit;
  }
  $("count").max = about.limits.count;
  $("model").textContent = about.model;
}

export const size = () => Number($("count").value) || 12;

// The settings that were filled in
export function given() {
  const found = {};
  for (const name of NUMBERS) if ($(name).value !== "") found[name] = Number($(name).value);
  if ($("negative").value.trim()) found.negative = $("negative").value.trim();
  return found;
}

export function unfold(open) {
  $("fields").hidden = !open;
  $("settings").setAttribute("aria-expanded", String(open));
  fit();
}
