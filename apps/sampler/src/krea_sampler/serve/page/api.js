// Talking to the server.

import { $ } from "./dom.js";

export async function post(path, body = {}) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

export const fetchAbout = async () => (await fetch("/api/about")).json();

// The parameters and the command of a finished picture; nothing if it is gone
export async function fetchDetails(board, tile) {
  const answer = await fetch(`/api/boards/${board}/${tile}`);
  return answer.ok ? answer.json() : undefined;
}

// Hands over every change, as long as somebody looks: browsers allow only six connections to one server,
// and a tab in the background lets go of its own.
export function listen(onChange) {
  let stream = null;
  const follow = () => {
    if (document.hidden) {
      stream?.close();
      stream = null;
    } else if (!stream) {
      stream = new EventSource("/api/events");
      stream.onmessage = (message) => onChange(JSON.parse(message.data));
      stream.onerror = () => $("spoken").replaceChildren("Connection lost; trying again");
    }
  };
  document.addEventListener("visibilitychange", follow);
  follow();
}
