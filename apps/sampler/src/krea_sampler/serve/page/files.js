// What leaves the page and what comes back to it: kept files, copied text, opened PNGs.

import { post } from "./api.js";
import { element, say } from "./dom.js";
import { repeat } from "./explore.js";
import { pickedTile, state } from "./state.js";

export async function keep() {
  const { kept } = await post(`/api/boards/${state.current}/${state.picked}/keep`);
  say(`Kept as ${kept}`);
}

export async function copy(what) {
  const { details } = pickedTile();
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

// The PNGs of krea-sample hold their parameters in a text chunk; only that text is sent.
export async function openPicture(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const data = new DataView(bytes.buffer);
  const text = new TextDecoder();
  for (let at = 8; at + 12 <= bytes.length; at += 12 + data.getUint32(at)) {
    const body = bytes.subarray(at + 8, at + 8 + data.getUint32(at));
    const kind = text.decode(bytes.subarray(at + 4, at + 8));
    if (kind !== "iTXt" || text.decode(body.subarray(0, 5)) !== "krea\0" || body[5] !== 0) continue;
    const language = body.indexOf(0, 7);
    return repeat(text.decode(body.subarray(body.indexOf(0, language + 1) + 1)));
  }
  throw new Error(`${file.name} holds no parameters of krea-sample; only its own PNGs can be opened.`);
}
