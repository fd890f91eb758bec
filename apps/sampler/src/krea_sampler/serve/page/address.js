// Where we are: #board/tile in the address, so that links, reloads and the back button work.

export const place = (board, tile) => `#${board}${tile === null || tile === undefined ? "" : `/${tile}`}`;

export const linked = () => location.hash.slice(1).split("/")[0];

// Leads to a board; what shows it listens to hashchange.
export function go(board, tile = null) {
  if (place(board, tile) === location.hash) dispatchEvent(new HashChangeEvent("hashchange"));
  else location.hash = place(board, tile);
}
