// Time against step of two schedules, told apart by line, mark and word as well as by colour.

const SVG = "http://www.w3.org/2000/svg";
const BOX = { left: 46, right: 572, top: 14, bottom: 214 };

function add(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function drawAxes(svg, most, x, y) {
  for (const time of [0, 0.5, 1]) {
    add(svg, "line", { class: "grid", x1: BOX.left, x2: BOX.right, y1: y(time), y2: y(time) });
    add(svg, "text", { x: BOX.left - 9, y: y(time) + 5, "text-anchor": "end" }, String(time));
  }
  const every = most > 60 ? 20 : most > 30 ? 10 : most > 12 ? 4 : 2;
  for (let step = 0; step <= most; step += every) {
    add(svg, "text", { x: x(step), y: BOX.bottom + 22, "text-anchor": "middle" }, String(step));
  }
  add(svg, "text", { x: (BOX.left + BOX.right) / 2, y: 256, "text-anchor": "middle" }, "step");
}

// lines: [{ name: "learned" or "fixed", label, times }], times from 1 down.
export function drawCurve(svg, lines, atLeast) {
  const most = Math.max(atLeast, ...lines.map((line) => line.times.length - 1));
  const x = (step) => BOX.left + (step / most) * (BOX.right - BOX.left);
  const y = (time) => BOX.bottom - time * (BOX.bottom - BOX.top);
  svg.replaceChildren();
  drawAxes(svg, most, x, y);
  for (const { name, label, times } of lines) {
    if (times.length < 2) continue;
    const group = add(svg, "g", { class: name });
    add(group, "polyline", { points: times.map((time, step) => `${x(step)},${y(time)}`).join(" ") });
    times.forEach((time, step) => {
      if (name === "learned") add(group, "circle", { cx: x(step), cy: y(time), r: 4.5 });
      else add(group, "rect", { x: x(step) - 3, y: y(time) - 3, width: 6, height: 6 });
    });
    const last = times.length - 1;
    const height = y(times[last]) - (name === "learned" ? 10 : -5); // they may end at the same place
    add(group, "text", { x: x(last) + 9, y: height }, label);
  }
}
