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
  return facts.flatMap(({ question, stated, truth }) => {
    if (stated.openings) return openings(stated.openings, truth.openings);
    if (!stated.cells || !TAGS[question]) return [];
    const among = (cells, cell) => cells.some((other) => String(other) === String(cell));
    const said = stated.cells.map((cell) => [cell, among(truth.cells, cell) ? "" : " off"]);
    // A single thing in the wrong cell says enough; of a list, what was left out shows too.
    const left = question.endsWith("_position") ? [] : truth.cells.filter((cell) => !among(stated.cells, cell));
    return [...said, ...left.map((cell) => [cell, " missed"])].flatMap(([cell, kind]) => tagged(cell, TAGS[question], kind, places));
  });
}

function tagged([row, col], tag, kind, places) {
  const order = places.get(`${row} ${col}`) ?? 0;
  places.set(`${row} ${col}`, order + 1);
  const text = kind === " missed" ? `no ${tag}` : tag;
  const [x, y] = [col + 0.05, row + 0.05 + order * 0.24];
  const label = element("text", { class: "tag", x: x + 0.05, y: y + 0.165 });
  label.textContent = text;
  return [
    element("rect", { class: `stated${kind}`, x: col + 0.05, y: row + 0.05, width: 0.9, height: 0.9 }),
    element("rect", { class: `tag-back${kind}`, x, y, width: 0.1 + text.length * 0.093, height: 0.22 }),
    label,
  ];
}

function openings(stated, truth) {
  const truly = new Map(truth.map(({ cell, open }) => [String(cell), open]));
  return stated.flatMap(({ cell, open }) => {
    const real = truly.get(String(cell)) ?? [];
    const said = open.map((direction) => line(cell, direction, real.includes(direction) ? "" : " off"));
    const left = real.filter((direction) => !open.includes(direction));
    return [...said, ...left.map((direction) => line(cell, direction, " missed"))];
  });
}

function line([row, col], direction, kind) {
  const [x, y] = [col + 0.5, row + 0.5];
  const [dx, dy] = POINTS[direction];
  const ends = { x1: x + dx * 0.5, y1: y + dy * 0.5, x2: x + dx * 0.86, y2: y + dy * 0.86 };
  return element("line", { class: `opening${kind}`, ...ends });
}
