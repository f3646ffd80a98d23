// A board's state as the server's JSON has it, and what drawing does to it.

const NORTH = 1, SOUTH = 2, WEST = 4, EAST = 8;
const SIDES = { up: [NORTH, -1, 0, SOUTH], down: [SOUTH, 1, 0, NORTH], left: [WEST, 0, -1, EAST], right: [EAST, 0, 1, WEST] };

/** The tools of each task: letter, name, and whether there is exactly one on a board. */
export const TOOLS = {
  frozenlake: [["S", "start", true], ["G", "goal", true], ["H", "hole", false], ["F", "ice", false]],
  maze: [["W", "walls", false], ["S", "start", true], ["G", "goal", true]],
  minibehaviour: [["A", "agent", true], ["P", "printer", true], ["T", "table", false], [".", "floor", false]],
};

export function sideOf(state) {
  return (state.rows ?? state.walls).length;
}

/** What is in a cell, in words. */
export function describe(state, row, col) {
  if (state.task === "maze") {
    const here = ([r, c]) => r === row && c === col;
    const open = Object.keys(SIDES).filter((side) => !(state.walls[row][col] & SIDES[side][0]));
    const marks = [here(state.start) ? "player" : "", here(state.goal) ? "goal" : ""].filter(Boolean);
    return [...marks, open.length ? `open to ${open.join(", ")}` : "closed on all sides"].join(", ");
  }
  const tool = TOOLS[state.task].find(([letter]) => letter === state.rows[row][col]);
  return tool ? tool[1] : "unknown";
}

function put(rows, row, col, letter) {
  rows[row] = rows[row].slice(0, col) + letter + rows[row].slice(col + 1);
}

/** Puts a letter into a cell; returns the new state, or a text that says why not. */
export function draw(state, letter, row, col) {
  const next = structuredClone(state);
  if (state.task === "maze") {
    next[letter === "S" ? "start" : "goal"] = [row, col];
    return next;
  }
  const tools = TOOLS[state.task];
  const empty = tools.at(-1)[0];
  const there = tools.find(([known]) => known === state.rows[row][col]);
  const single = tools.find(([known]) => known === letter)[2];
  if (there[0] === letter) return next;
  if (there[2]) return `The ${there[1]} stands here; put it elsewhere first.`;
  if (single) next.rows = next.rows.map((line) => line.replaceAll(letter, empty));
  put(next.rows, row, col, letter);
  return next;
}

/** Builds or tears down a wall of a maze; returns the new state, or a text that says why not. */
export function toggleWall(state, row, col, side) {
  const [bit, down, right, opposite] = SIDES[side];
  const [nextRow, nextCol] = [row + down, col + right];
  const last = state.walls.length - 1;
  if (nextRow < 0 || nextCol < 0 || nextRow > last || nextCol > last) return "The outer wall stays.";
  const next = structuredClone(state);
  const built = !(state.walls[row][col] & bit);
  next.walls[row][col] = built ? state.walls[row][col] | bit : state.walls[row][col] & ~bit;
  const other = state.walls[nextRow][nextCol];
  next.walls[nextRow][nextCol] = built ? other | opposite : other & ~opposite;
  return next;
}
