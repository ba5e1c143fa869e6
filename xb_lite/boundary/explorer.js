// What a reader does with an explorer: choose a map, read its points, drag the threshold.
// explorer.html has the markup, with the points of the first view in it; this moves them.
const ROW = 32; // height of one kind's row of the strip, px
const REACH = 24; // how far from a pointer a point may be, px
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

start("xb-explorer", explore);

function explore(root, find, data) {
  find(".first-view").remove();
  const n = data.kinds.length;
  const maps = data.maps.map((text) => new Uint16Array(bytes(text).buffer));
  const steps = bytes(data.scores); // by defense, layer, item: the score's step on the strip
  const sizes = data.names.map((_, kind) => data.kinds.filter((of) => of === kind).length);

  const form = find("form");
  const map = find(".map");
  const group = find(".points");
  const points = [...group.children];
  const ring = find(".ring");
  const slider = find("[name=threshold]");
  let now; // what is shown: projection, defense and layer by index, and the strip of the layer
  let current = null; // the item that is read
  let wanted = 0; // the threshold, kept in units of the score when the layer changes
  const saySoon = speaker(find("[role=status]"), told);

  // From a picture to a thing to use.
  map.removeAttribute("role");
  map.removeAttribute("aria-label");
  group.setAttribute("role", "listbox");
  group.setAttribute("aria-label", `${n} prompts on the map. Arrow keys go to the next point ` +
    "that way, Page Up and Page Down to the next higher or lower harm score.");
  points.forEach((point, i) => {
    point.setAttribute("role", "option");
    point.setAttribute("tabindex", i ? -1 : 0);
  });
  const strip = find(".strip label svg");
  data.names.forEach((_, row) => {
    const y = (row + 0.5) * ROW;
    add(strip, "line", { x1: "0", x2: "100%", y1: y, y2: y });
  });
  const marks = points.map((point, i) =>
    add(strip, "path", { class: data.names[data.kinds[i]], d: point.getAttribute("d") }));

  form.addEventListener("input", () => {
    showView();
    saySoon();
  });
  slider.addEventListener("input", () => {
    wanted = threshold(+slider.value);
    showRefusals();
    saySoon();
  });
  map.addEventListener("pointermove", (event) => event.pointerType === "touch" || readAt(event));
  map.addEventListener("click", readAt);
  // On the root: a part of an SVG that listens to the focus would be a tab stop itself.
  root.addEventListener("focusin", (event) => {
    if (points.includes(event.target)) read(points.indexOf(event.target));
  });
  root.addEventListener("keydown", (event) => {
    const plain = !(event.altKey || event.ctrlKey || event.metaKey || event.shiftKey);
    if (plain && points.includes(event.target)) walk(event);
  });
  showView();

  // Where the values of a defense, the layer shown and an item are in the packed arrays.
  function index(defense, item) {
    return (defense * data.layers.length + now.layer) * n + item;
  }

  // [x, y] of an item in percent of the map, as explorer.py puts the first view.
  function place(item, defense = now.defense) {
    const at = 2 * index(defense, item);
    const [x, y] = maps[now.projection].subarray(at, at + 2);
    return [3 + (94 * x) / (data.places - 1), 97 - (94 * y) / (data.places - 1)];
  }

  function stepOf(item) {
    return steps[index(now.defense, item)];
  }

  function isRefused(item) {
    return stepOf(item) >= +slider.value;
  }

  function threshold(step) {
    return (now.first + step) * now.width;
  }

  // Another projection, defense or layer was chosen.
  function showView() {
    now = {};
    for (const name of ["projection", "defense", "layer"]) now[name] = +form.elements[name].value;
    [now.first, now.count, now.width] = data.scales[now.layer];
    const layer = `layer ${data.layers[now.layer]}`;
    const names = [data.projections[now.projection], data.defenses[now.defense], layer];
    find(".title").textContent = names.join(", ");
    find(".layer b").textContent = data.layers[now.layer];
    form.elements.layer.setAttribute("aria-valuetext", layer);
    points.forEach((point, i) => move(point, place(i)));
    find(".lines").replaceChildren();
    if (form.elements.moves.checked && now.defense) {
      points.forEach((_, i) => {
        const [x1, y1, x2, y2] = [...place(i, 0), ...place(i)].map((part) => `${part}%`);
        add(find(".lines"), "line", { x1, y1, x2, y2 });
      });
    }
    // The strip has another scale at another layer; the threshold stays where it was, if it can.
    slider.max = now.count;
    slider.value = Math.min(Math.max(Math.round(wanted / now.width) - now.first, 0), now.count);
    const ends = find(".ends");
    ends.firstElementChild.textContent = number(threshold(0));
    ends.lastElementChild.textContent = number(threshold(now.count));
    marks.forEach((mark, i) => {
      const spread = ((i * 0.618034) % 1) - 0.5; // so that equal scores do not hide each other
      const y = (data.kinds[i] + 0.5 + 0.55 * spread) * ROW;
      const x = (100 * (stepOf(i) + 0.5)) / now.count;
      mark.style.transform = `translate(${x}%,${y}px) scale(0.8)`;
    });
    showRefusals();
  }

  // The threshold was moved, or what it is laid over has changed.
  function showRefusals() {
    const counts = sizes.map(() => 0);
    points.forEach((point, i) => {
      const refused = isRefused(i);
      for (const marker of [point, marks[i]]) marker.classList.toggle("refused", refused);
      point.setAttribute("aria-label", `${label(i)}: ${data.prompts[i]}`);
      counts[data.kinds[i]] += refused;
    });
    const at = number(threshold(+slider.value));
    find(".rule b").textContent = at;
    slider.setAttribute("aria-valuetext", at);
    counts.forEach((k, kind) => {
      const share = (part) => Math.round(100 * part);
      const [low, high] = wilson(k, sizes[kind]).map(share);
      const line = find(".counts").children[kind];
      line.querySelector("b").textContent = `${share(k / sizes[kind])} %`;
      const told = `${k} of ${sizes[kind]} ${data.names[kind]} refused`;
      line.querySelector("span").textContent = told;
      line.querySelector("small").textContent = `95 % interval: ${low} to ${high} %`;
    });
    if (current !== null) read(current);
  }

  // What is refused, in words.
  function told() {
    const lines = [...find(".counts").children].map((line) =>
      `${line.querySelector("span").textContent}, ${line.querySelector("b").textContent}`);
    return `${find(".title").textContent}. Threshold ${find(".rule b").textContent}: ` +
      `${lines.join("; ")}.`;
  }

  function label(item) {
    return `${data.names[data.kinds[item]]}, ${isRefused(item) ? "refused" : "let through"}`;
  }

  // Show the prompt of an item; its point is the one that Tab comes back to.
  function read(item) {
    points[current ?? 0].setAttribute("tabindex", -1);
    points[current ?? 0].removeAttribute("aria-selected");
    marks[current ?? 0].classList.remove("current");
    current = item;
    points[item].setAttribute("tabindex", 0);
    points[item].setAttribute("aria-selected", "true");
    marks[item].classList.add("current");
    move(ring, place(item));
    ring.removeAttribute("visibility");
    find(".about").textContent = `${label(item)}, harm score ${number(threshold(stepOf(item)))}`;
    find(".prompt").textContent = data.prompts[item];
  }

  function readAt(event) {
    const box = map.getBoundingClientRect();
    const ways = distances(event.clientX - box.left, event.clientY - box.top);
    const near = ways.map(([x, y]) => Math.hypot(x, y));
    const nearest = near.indexOf(Math.min(...near));
    if (near[nearest] <= REACH) read(nearest);
  }

  // From a place in the map to all points, in px.
  function distances(x, y) {
    const { width, height } = map.getBoundingClientRect();
    return points.map((_, i) => {
      const [px, py] = place(i);
      return [(px * width) / 100 - x, (py * height) / 100 - y];
    });
  }

  function walk(event) {
    const from = points.indexOf(event.target);
    let to = -1;
    if (event.key in ARROWS) {
      // The nearest that way, where what lies to the side counts twice.
      const [dx, dy] = ARROWS[event.key];
      const { width, height } = map.getBoundingClientRect();
      const [x, y] = place(from);
      let least = Infinity;
      distances((x * width) / 100, (y * height) / 100).forEach(([px, py], i) => {
        const along = px * dx + py * dy;
        const cost = along + 2 * Math.abs(px * dy + py * dx);
        if (along > 0 && cost < least) [least, to] = [cost, i];
      });
    } else {
      const order = points.map((_, i) => i).sort((a, b) => stepOf(a) - stepOf(b) || a - b);
      const at = order.indexOf(from);
      const target = { Home: 0, End: n - 1, PageUp: at + 1, PageDown: at - 1 }[event.key];
      if (target === undefined) return;
      to = order[target] ?? from;
    }
    event.preventDefault();
    event.stopPropagation();
    if (to >= 0) points[to].focus({ preventScroll: true });
  }

  // A score or threshold with as many decimals as the strip has.
  function number(value) {
    const digits = Math.max(0, -Math.floor(Math.log10(now.width)));
    return value.toFixed(digits).replace("-", "−");
  }
}

// The 95 % Wilson interval of k of n, as in xb_lite.rates.
function wilson(k, n) {
  const z = 1.959964;
  const middle = (k + (z * z) / 2) / (n + z * z);
  const half = (z / (n + z * z)) * Math.sqrt((k * (n - k)) / n + (z * z) / 4);
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

function bytes(text) {
  const plain = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
  return Uint8Array.from(plain, (letter) => letter.charCodeAt(0));
}

function move(element, [x, y]) {
  element.style.transform = `translate(${x}%,${y}%)`;
}
