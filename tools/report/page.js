"use strict";
// Values under the pointer, and zoom along an axis of time: drag over what is to be seen, double-click for all of it.
// A plot says by data-x and data-y what its pixels mean: kind, low, high, start, end, factor.
for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
for (const svg of document.querySelectorAll("svg[data-x]")) {
  const [x, y] = ["x", "y"].map((axis) => {
    const [kind, ...numbers] = svg.dataset[axis].split(" ");
    return [kind, ...numbers.map(Number)];
  });
  const value = ([kind, low, high, start, end, factor], pixel) => {
    const share = (pixel - start) / (end - start);
    if (kind === "log") return factor * low * (high / low) ** share;
    const plain = low + share * (high - low);
    return kind === "nines" ? 100 * (1 - 10 ** -plain) : factor * plain;
  };
  const make = (name, attributes, words) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (words) made.textContent = words;
    return svg.appendChild(made);
  };
  const short = (number) => String(Number(number.toPrecision(4)));
  const titles = [...svg.querySelectorAll("text.title")].map((text) => text.textContent);
  const names = {};
  for (const entry of svg.closest("figure").querySelectorAll(".legend li")) {
    const swatch = entry.querySelector("path, rect");
    names[[...swatch.classList].find((name) => /^(series\d|late|dense|random)$/.test(name))] = entry.textContent;
  }
  const points = [];
  for (const path of svg.querySelectorAll("path.dots, path.line")) {
    const name = [...path.classList].map((kind) => names[kind]).find(Boolean) || "";
    let at = [0, 0];
    for (const [, letter, a, b] of path.getAttribute("d").matchAll(/([MLHV])(-?[\d.]+)(?: (-?[\d.]+))?/g)) {
      at = letter === "H" ? [+a, at[1]] : letter === "V" ? [at[0], +a] : [+a, +b];
      if (letter !== "H") points.push([...at, name]);
    }
  }
  let from = x[3], to = x[4], pressed = null;
  const shown = (pixel) => x[3] + ((pixel - from) / (to - from)) * (x[4] - x[3]);
  const meant = (pixel) => from + ((pixel - x[3]) / (x[4] - x[3])) * (to - from);
  const place = (event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const chosen = make("rect", { class: "brush", y: y[4], height: y[3] - y[4], width: 0 });
  const ring = make("circle", { class: "ring", r: 0 });
  const told = make("text", { class: "told halo" });
  const hide = () => { ring.setAttribute("r", 0); told.textContent = ""; };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const [px, py] = place(event);
    if (pressed !== null) {
      chosen.setAttribute("x", Math.min(px, pressed));
      chosen.setAttribute("width", Math.abs(px - pressed));
    }
    let best = null, least = 30 ** 2;
    for (const point of points) {
      const off = (shown(point[0]) - px) ** 2 + (point[1] - py) ** 2;
      if (point[0] >= from && point[0] <= to && off < least) [best, least] = [point, off];
    }
    if (!best) return hide();
    const at = shown(best[0]), right = at > (x[3] + x[4]) / 2;
    for (const [key, number] of [["cx", at], ["cy", best[1]], ["r", 5]]) ring.setAttribute(key, number);
    told.setAttribute("x", at + (right ? -9 : 9));
    told.setAttribute("y", Math.max(best[1] - 9, y[4] + 10));
    told.setAttribute("text-anchor", right ? "end" : "start");
    const parts = [`${titles[0]}: ${short(value(x, best[0]))}`, `${titles[1]}: ${short(value(y, best[1]))}`];
    told.textContent = [...(best[2] ? [best[2]] : []), ...parts].join("  ·  ");
  });
  if (!svg.dataset.zoom) continue;
  const floor = svg.querySelector(".tick[text-anchor=middle]").getAttribute("y");
  const id = `seen-${[...document.querySelectorAll("svg")].indexOf(svg)}`;
  const clip = document.createElementNS(svg.namespaceURI, "rect");
  make("clipPath", { id }).append(clip);
  const zoom = (a, b) => {
    [from, to] = [a, b];
    const factor = (x[4] - x[3]) / (to - from), whole = factor === 1;
    svg.classList.toggle("zoomed", !whole);
    for (const [key, number] of [["x", from], ["width", to - from], ["y", 0], ["height", y[3]]])
      clip.setAttribute(key, number);
    for (const data of svg.querySelectorAll("g.data")) {
      data.setAttribute("transform", `translate(${x[3] - from * factor} 0) scale(${factor} 1)`);
      data.setAttribute("clip-path", whole ? "none" : `url(#${id})`);
    }
    for (const mark of svg.querySelectorAll(".mark[data-at]")) {
      const at = +mark.dataset.at;
      mark.setAttribute("transform", `translate(${shown(at) - at} 0)`);
      mark.style.display = at < from || at > to ? "none" : "";
    }
    for (const tick of svg.querySelectorAll(".new")) tick.remove();
    if (whole) return;
    const [low, high] = [value(x, from), value(x, to)], rough = (high - low) / 6;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((times) => times * power >= rough);
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step)
      make("text", { class: "tick new", "text-anchor": "middle", y: floor,
        x: x[3] + ((tick - low) / (high - low)) * (x[4] - x[3]) }, short(tick));
  };
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") pressed = place(event)[0];
  });
  window.addEventListener("pointerup", (event) => {
    if (pressed === null) return;
    const ends = [pressed, place(event)[0]].map((pixel) => Math.min(Math.max(meant(pixel), from), to));
    pressed = null;
    chosen.setAttribute("width", 0);
    ends.sort((a, b) => a - b);
    if (ends[1] - ends[0] > (to - from) / 100) zoom(...ends);
  });
  svg.addEventListener("dblclick", () => zoom(x[3], x[4]));
}
