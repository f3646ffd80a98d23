// What lies over the picture: the way of a plan up to a step, the moment it fails, and what an answer states.

const svg = document.getElementById("overlay");
const POINTS = { up: [0, -0.5], down: [0, 0.5], left: [-0.5, 0], right: [0.5, 0] };
const TAGS = {
  player_position: "start", goal_position: "goal", h_positions: "H", agent_position: "agent",
  printer_position: "printer", table_cells: "T",
};

function element(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Sets the size of the board in cells. */
export function resize(side) {
  svg.setAttribute("viewBox", `0 0 ${side} ${side}`);
}

/** A walk's states as `{row, col, carrying}`. */
export function states(walk) {
  return walk.score.path.map((state) => {
    const [cell, carrying] = Array.isArray(state[0]) ? state : [state, false];
    return { row: cell[0], col: cell[1], carrying };
  });
}

/** Draws a walk up to a step, and what was stated; either may be missing. */
export function draw(walk, step, facts) {
  svg.replaceChildren(...(facts ? statements(facts) : []), ...(walk ? way(walk, step) : []));
}

function way(walk, step) {
  const all = states(walk);
  const shown = all.slice(0, Math.min(step, all.length - 1) + 1);
  const points = shown.map(({ row, col }) => `${col + 0.5},${row + 0.5}`).join(" ");
  const { row, col, carrying } = shown.at(-1);
  const [x, y] = [col + 0.5, row + 0.5];
  const out = [element("polyline", { class: "path-case", points }), element("polyline", { class: "path", points })];
  const last = step >= walk.score.steps_executed;
  if (last && walk.score.success) out.push(element("circle", { class: "reached", cx: x, cy: y, r: 0.38 }));
  out.push(element("circle", { class: carrying ? "walker carrying" : "walker", cx: x, cy: y, r: 0.15 }));
  if (last && !walk.score.success) out.push(...cross(...failure(walk, x, y)));
  return out;
}

/** Where the cross goes: into the hole, between the cell left and the one not reached, or onto the last cell. */
function failure(walk, x, y) {
  const reason = walk.score.invalid_reason;
  const direction = walk.directions[walk.score.steps_executed - 1];
  if (!reason || reason === "fell_into_hole" || !direction) return [x, y];
  const side = svg.viewBox.baseVal.width;
  const inside = (value) => Math.min(Math.max(value, 0.2), side - 0.2);
  const [right, down] = POINTS[direction];
  return [inside(x + right), inside(y + down)];
}

function cross(x, y) {
  const line = (name, turn) => element("line", { class: name, x1: x - 0.2, y1: y - 0.2 * turn, x2: x + 0.2, y2: y + 0.2 * turn });
  return ["failure-case", "failure"].flatMap((name) => [line(name, 1), line(name, -1)]);
}

function statements(facts) {
  const places = new Map();
  const out = [];
  for (const { question, stated, right } of facts) {
    if (stated.openings) out.push(...openings(stated.openings, right));
    if (!stated.cells || !TAGS[question]) continue;
    for (const [row, col] of stated.cells) out.push(...tagged(row, col, TAGS[question], right, places));
  }
  return out;
}

function tagged(row, col, tag, right, places) {
  const key = `${row} ${col}`;
  const order = places.get(key) ?? 0;
  places.set(key, order + 1);
  const off = right ? "" : " off";
  const [x, y] = [col + 0.05, row + 0.05 + order * 0.27];
  const label = element("text", { class: "tag", x: x + 0.05, y: y + 0.19 });
  label.textContent = tag;
  return [
    element("rect", { class: `stated${off}`, x: col + 0.05, y: row + 0.05, width: 0.9, height: 0.9 }),
    element("rect", { class: `tag-back${off}`, x, y, width: 0.1 + tag.length * 0.115, height: 0.25 }),
    label,
  ];
}

function openings(cells, right) {
  return cells.flatMap(({ cell: [row, col], open }) => open.map((direction) => {
    const [x, y] = [col + 0.5, row + 0.5];
    const [dx, dy] = POINTS[direction];
    const line = { x1: x + dx * 0.3, y1: y + dy * 0.3, x2: x + dx * 0.8, y2: y + dy * 0.8 };
    return element("line", { class: right ? "opening" : "opening off", ...line });
  }));
}
