// What the page knows, and what follows from it. The server holds the boards and tells of every change.

export const state = {
  boards: new Map(), // id -> board; its tiles are replaced as they change
  order: [], // ids of all boards, oldest first
  run: "", // which server this is: after a restart everything is new
  current: "", // the board that is shown
  picked: null, // number of the picked tile on it
  asked: "", // a board that was asked for and may not be here yet
  first: null, // {board, tile}: one end, while the other is being picked
  undo: [], // {what, act}
  gone: new Set(), // boards that were taken down here: nobody needs to be told that they are
};

export const shown = () => state.boards.get(state.current);
export const pickedTile = () => (state.picked === null ? undefined : shown()?.tiles[state.picked]);
export const here = () => ({ board: state.current, tile: state.picked });

export const total = (board, of) => board.tiles.reduce((sum, tile) => sum + of(tile), 0);
export const count = (board, ...states) => board.tiles.filter((tile) => states.includes(tile.state)).length;
export const reached = (board) => total(board, (tile) => (tile.state === "done" ? tile.steps : tile.step));
export const leading = (board) => board?.tiles[0]?.prompts.toSorted((a, b) => b[1] - a[1])[0][0] ?? "";

export function source(id, number) {
  const tile = state.boards.get(id)?.tiles[number];
  return tile?.state === "done" ? `/api/boards/${id}/${number}.png` : tile?.preview || "";
}

export function describe(tile, number) {
  const words = { waiting: "waiting", drawing: "being drawn", done: "", failed: tile.error, stopped: "stopped" }[tile.state];
  return [`Picture ${number + 1}`, tile.caption, words, tile.kept ? "kept" : ""].filter(Boolean).join(", ");
}
