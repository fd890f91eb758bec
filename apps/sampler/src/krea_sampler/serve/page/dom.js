// Nodes of the page, and words on it.

export const $ = (id) => document.getElementById(id);

export function element(name, properties) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  return node;
}

let fading = 0;
export function say(text) {
  $("said").textContent = text;
  $("said").classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => $("said").classList.remove("shown"), 2600);
}

export function trouble(text) {
  const sentence = /^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  $("trouble").hidden = !text;
  $("trouble").textContent = sentence && !/[.?!]$/.test(sentence) ? `${sentence}.` : sentence;
}

// Runs what a click asks for; whatever goes wrong is one sentence above the board.
export async function attempt(action) {
  try {
    trouble("");
    await action();
  } catch (error) {
    trouble(error instanceof TypeError ? "The server does not answer. Is krea-sample serve still running?" : error.message);
  }
}
