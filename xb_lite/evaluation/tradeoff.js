// What a reader does with the trade-off: choose a defense, a training seed and a strength.
// tradeoff.html has the markup, with all values as a table in it; this puts the controls there.
start("xb-tradeoff", show);

function show(root, find, { places, ticks }) {
  find("details").open = false;
  const form = find("form");
  const { defense, seed, strength } = form.elements;
  let wanted = 1; // the strength, kept where another adapter has it too

  for (const tick of ticks) {
    const [x, y] = [across(tick / 100), up(tick / 100)];
    add(find(".axes"), "line", { x1: across(0), x2: across(1), y1: y, y2: y });
    add(find(".axes"), "line", { x1: x, x2: x, y1: up(0), y2: up(1) });
    add(find(".axes"), "text", { x, y: up(0), dy: 16, "text-anchor": "middle" }).textContent = tick;
    add(find(".axes"), "text", { x: across(0), y, dx: -6, dy: 4, "text-anchor": "end" })
      .textContent = tick;
  }
  const adapters = new Map(); // by defense, and by seed: its places in the order of strengths
  for (const place of places) {
    if (!adapters.has(place.defense)) adapters.set(place.defense, new Map());
    const seeds = adapters.get(place.defense);
    if (!seeds.has(place.seed)) seeds.set(place.seed, []);
    seeds.get(place.seed).push(place);
  }
  for (const seeds of adapters.values()) {
    for (const line of seeds.values()) draw(find(".others"), line);
  }

  defense.addEventListener("input", offerSeeds);
  seed.addEventListener("input", offerStrengths);
  strength.addEventListener("input", () => {
    wanted = adapter()[+strength.value].strength;
    showPlace();
  });
  form.addEventListener("input", speaker(find("[role=status]"), told));
  offerSeeds();

  // The places of the adapter that is chosen, in the order of their strengths.
  function adapter() {
    return adapters.get(defense.value).get(+seed.value);
  }

  function offerSeeds() {
    const before = seed.value;
    const there = [...adapters.get(defense.value).keys()].map(String);
    seed.replaceChildren(...there.map((name) => new Option(name)));
    seed.value = there.includes(before) ? before : there[0];
    offerStrengths();
  }

  function offerStrengths() {
    const far = adapter().map((place) => Math.abs(place.strength - wanted));
    strength.max = far.length - 1;
    strength.value = far.indexOf(Math.min(...far));
    showPlace();
  }

  function showPlace() {
    const line = adapter();
    const now = line[+strength.value];
    const name = `${now.strength}${now.strength ? "" : " (undefended)"}`;
    find(".strength b").textContent = name;
    strength.setAttribute("aria-valuetext", name);
    tell(find(".success"), now.success);
    tell(find(".refusal"), now.over_refusal);
    find(".own").replaceChildren();
    draw(find(".own"), line);
    for (const place of line) {
      const at = { cx: across(share(place.over_refusal)), cy: up(share(place.success)) };
      add(find(".own"), "circle", { ...at, r: 4 });
    }
    const dots = find(".own").querySelectorAll("circle");
    dots[+strength.value].classList.add("now");
    dots[+strength.value].setAttribute("r", 8);
    find(".own").append(dots[+strength.value]); // above the others
    find(".plane").setAttribute("aria-label", summary());
    const made = now.replies.map(({ prompt, reply, label }) => {
      const card = document.createElement("li");
      card.append(part("User", prompt), part("Model", reply), part("Judged", label));
      return card;
    });
    find(".replies").replaceChildren(...made);
    find(".none").hidden = made.length > 0;
  }

  function tell(line, [k, n, percent, low, high]) {
    line.querySelector("b").textContent = `${percent} %`;
    line.querySelector("small").textContent =
      `${k} of ${n}; 95 % interval: ${low} to ${high} %`;
  }

  function summary() {
    const { strength: at, success, over_refusal } = adapter()[+strength.value];
    return `${defense.value}, seed ${seed.value}, strength ${at}: attack success ` +
      `${success[2]} %, over-refusal ${over_refusal[2]} %`;
  }

  function told() {
    const labels = adapter()[+strength.value].replies.map((reply) => reply.label);
    return `${summary()}.${labels.length ? ` Replies: ${labels.join(", ")}.` : ""}`;
  }
}

function share([k, n]) {
  return k / n;
}

// Places on the plane, in percent of the picture.
function across(part) {
  return `${12 + 85 * part}%`;
}

function up(part) {
  return `${86 - 78 * part}%`;
}

function draw(group, line) {
  line.slice(1).forEach((to, i) => {
    const from = line[i];
    add(group, "line", {
      x1: across(share(from.over_refusal)),
      y1: up(share(from.success)),
      x2: across(share(to.over_refusal)),
      y2: up(share(to.success)),
    });
  });
}

function part(name, text) {
  const line = document.createElement("p");
  const head = document.createElement("strong");
  head.textContent = `${name}: `;
  line.append(head, text);
  return line;
}
