"use strict";
const SVG = "http://www.w3.org/2000/svg";

function add(parent, tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return parent.appendChild(node);
}

function show(value) {
  if (value === null) return "not a number";
  const size = Math.abs(value);
  return size && (size < 1e-4 || size >= 1e7) ? value.toExponential(2) : Number(value.toPrecision(4)).toLocaleString("en-GB", { maximumSignificantDigits: 4 });
}

// A chart becomes a slider over its x values, for the pointer and for the keyboard.
function readable(svg) {
  const data = JSON.parse(svg.dataset.chart);
  const output = svg.closest("figure").querySelector("output");
  const resting = output.textContent;
  const last = data.x.length - 1;
  const mark = add(svg, "g", { visibility: "hidden" });
  const line = add(mark, "line", { class: "cursor", y1: 10, y2: 176 });
  const dots = data.curves.map((curve, i) => add(mark, "circle", { class: `read c${i % 16}`, r: 4 }));
  let at = last;

  function words(i) {
    const single = data.curves.length === 1;
    const there = single ? data.curves : data.curves.filter((curve) => curve.y[i] !== null); // others begin later, or are over
    const values = there.map((curve) => (single ? "" : `${curve.name} `) + show(curve.y[i]));
    const x = show(data.x[i]);
    const place = data.name === "GFLOPs" ? `${x} GFLOPs` : `${data.name.replace(/s$/, "")} ${x}`; // a unit, not a count of things
    return `${values.join(", ")} at ${place}`;
  }

  function move(i) {
    at = Math.max(0, Math.min(last, i));
    mark.setAttribute("visibility", "visible");
    line.setAttribute("x1", data.px[at]);
    line.setAttribute("x2", data.px[at]);
    data.curves.forEach((curve, c) => {
      dots[c].setAttribute("visibility", curve.py[at] === null ? "hidden" : "inherit");
      dots[c].setAttribute("cx", data.px[at]);
      dots[c].setAttribute("cy", curve.py[at] ?? 0);
    });
    output.textContent = words(at);
    svg.setAttribute("aria-valuenow", at);
    svg.setAttribute("aria-valuetext", words(at));
  }

  function rest() {
    mark.setAttribute("visibility", "hidden");
    output.textContent = resting;
  }

  svg.setAttribute("role", "slider");
  svg.setAttribute("tabindex", 0);
  svg.setAttribute("aria-valuemin", 0);
  svg.setAttribute("aria-valuemax", last);
  svg.setAttribute("aria-valuenow", last);
  svg.setAttribute("aria-valuetext", words(last));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    move(data.px.reduce((best, px, i) => (Math.abs(px - x) < Math.abs(data.px[best] - x) ? i : best), 0));
  });
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) move(at); });
  svg.addEventListener("blur", rest);
  svg.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.round(last / 10));
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, PageUp: at + page, PageDown: at - page, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to);
  });
}

// The map: the nearest mark under the pointer, or the next one in the direction of an arrow key.
function browsable(plane, points) {
  const svg = plane.querySelector("svg");
  const card = plane.querySelector(".card");
  const columns = Number(plane.style.getPropertyValue("--columns"));
  const rows = Number(plane.style.getPropertyValue("--rows"));
  const side = svg.viewBox.baseVal.width;
  const target = add(svg, "circle", { class: "target", r: 8, visibility: "hidden" });
  let chosen = null;
  let at = -1;

  const shown = (i) => chosen === null || points.group[i] === chosen;

  function move(i) {
    at = i;
    target.setAttribute("visibility", "visible");
    target.setAttribute("cx", points.x[i]);
    target.setAttribute("cy", points.y[i]);
    const share = (part, parts) => (parts > 1 ? `${(100 * part) / (parts - 1)}%` : "0%");
    card.querySelector("i").style.backgroundPosition = `${share(i % columns, columns)} ${share(Math.floor(i / columns), rows)}`;
    card.querySelector("b").textContent = points.label[i];
    card.querySelector("span").textContent = points.name[i];
    card.hidden = false;
    const scale = plane.clientWidth / side;
    const [x, y] = [points.x[i] * scale, points.y[i] * scale];
    card.style.left = `${x + 16 + card.offsetWidth > plane.clientWidth ? Math.max(0, x - 16 - card.offsetWidth) : x + 16}px`;
    card.style.top = `${Math.max(0, Math.min(y - 20, plane.clientHeight - card.offsetHeight))}px`;
  }

  function rest() {
    card.hidden = true;
    target.setAttribute("visibility", "hidden");
  }

  function nearest(cost) {
    let best = -1;
    let least = Infinity;
    for (let i = 0; i < points.x.length; i++) {
      const value = shown(i) ? cost(i) : Infinity;
      if (value < least) [best, least] = [i, value];
    }
    return best;
  }

  function point(event) {
    const box = svg.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) / box.width) * side, ((event.clientY - box.top) / box.height) * side];
    const distance = (i) => Math.hypot(points.x[i] - x, points.y[i] - y);
    const i = nearest(distance);
    if (i >= 0 && distance(i) < 28) move(i);
    else rest();
  }

  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", rest);
  plane.addEventListener("blur", rest);
  plane.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (event.key === "Escape") rest();
    if (!step) return;
    event.preventDefault();
    const [x, y] = at < 0 ? [side / 2, side / 2] : [points.x[at], points.y[at]];
    const next = nearest((i) => {
      const [dx, dy] = [points.x[i] - x, points.y[i] - y];
      const along = dx * step[0] + dy * step[1];
      const aside = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
      return i !== at && along > 0 ? along + 2 * aside : Infinity;
    });
    if (next >= 0) {
      move(next);
      plane.querySelector("[aria-live]").textContent = `${points.label[next]}, ${points.name[next]}`;
    }
  });
  for (const button of document.querySelectorAll(".groups button")) {
    button.addEventListener("click", () => {
      const group = Number(button.dataset.group);
      chosen = chosen === group ? null : group;
      svg.classList.toggle("chosen", chosen !== null);
      svg.querySelectorAll(".points").forEach((g) => g.classList.toggle("lit", Number(g.dataset.group) === chosen));
      document.querySelectorAll(".groups button").forEach((b) => b.setAttribute("aria-pressed", Number(b.dataset.group) === chosen));
      rest();
    });
  }
}

// Pointing at a crop brings out its outline on the original.
function traceable(original) {
  const outlines = original.querySelectorAll("rect");
  original.querySelectorAll(".crops li").forEach((crop, i) => {
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) {
      crop.addEventListener(event, () => {
        original.classList.toggle("pointed", on);
        outlines[i].classList.toggle("lit", on);
      });
    }
  });
}

document.querySelectorAll("svg[data-chart]").forEach(readable);
document.querySelectorAll(".original").forEach(traceable);
const points = document.getElementById("points");
if (points) browsable(document.querySelector(".plane"), JSON.parse(points.textContent));
